#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "contrastive/core/export.h"

namespace contrastive::optim {

/// The shape of a learning rate over a run.
struct ScheduleOptions {
  std::string schedule = "cosine";  ///< the curve, see Schedule
  int64_t warmup_steps = 0;
  std::string warmup_from = "first_step";  ///< or "zero"; see Schedule
  int64_t cooldown_steps = 0;              ///< the last steps of the run
  double cooldown_power = 1.0;
  double cooldown_end_lr = 0.0;
  double end = 0.0;                       ///< "linear", "polynomial": share of the base that is left in the end
  double power = 1.0;                     ///< "polynomial"
  double timescale = 10'000;              ///< "rsqrt": steps after which 1 / sqrt(2) is left
  double shift = 0;                       ///< "rsqrt": steps that count as done at the end of the warm-up
  std::vector<int64_t> stair_steps = {};  ///< "stair": ascending; from each on, the multiplier at its place counts
  std::vector<double> stair_multipliers = {};

  bool operator==(const ScheduleOptions&) const = default;
};

/// The learning rate as a pure function of the step. With w warm-up and T total steps, and p = (s - w) / (T - w)
/// bounded to [0, 1], the curve at step s is base times
/// - "constant", "constant_cooldown": 1;
/// - "cosine": (1 + cos(pi p)) / 2;
/// - "linear", "polynomial": end + (1 - end) (1 - p)^power, with power 1 if linear;
/// - "rsqrt": 1 / sqrt(1 + (max(s - w, 0) + shift) / timescale);
/// - "stair": the multiplier of the last stair step that is <= s, 1 before the first.
/// In the warm-up the curve is multiplied by (s + 1) / w with warmup_from "first_step", so the first step is not lost
/// (open_clip), or by s / w with "zero" (big_vision). In the last C = cooldown_steps steps the curve c becomes
/// end_lr + (c - end_lr) (1 - (s - (T - C)) / C)^cooldown_power, in a warm-up only if that is from "zero".
/// From T on: the value at T. Source: open_clip_train 3.3.0; big_vision/utils.py, create_learning_rate_schedule.
class CONTRASTIVE_API Schedule {
 public:
  /// Throws: ConfigError if a name is unknown, a number is out of range, or warm-up or cool-down is longer than the
  /// run.
  Schedule(ScheduleOptions options, double base_lr, int64_t total_steps);

  /// The learning rate of step `step`, from 0.
  double at(int64_t step) const;

  int64_t total_steps() const { return total_steps_; }
  double base_lr() const { return base_lr_; }
  const ScheduleOptions& options() const { return options_; }

 private:
  enum class Kind { constant, cosine, polynomial, rsqrt, stair };
  static Kind parse_kind(const std::string& kind);
  void validate() const;
  void validate_curve() const;
  double curve(int64_t step) const;
  double polynomial(int64_t step) const;
  double rsqrt(int64_t step) const;
  double stair(int64_t step) const;
  double progress(int64_t step) const;
  double cooled(double lr, int64_t step) const;

  ScheduleOptions options_;
  Kind kind_;
  double base_lr_;
  int64_t total_steps_;
};

}  // namespace contrastive::optim
