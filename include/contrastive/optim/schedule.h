#pragma once

#include <cstdint>
#include <string>

#include "contrastive/core/export.h"

namespace contrastive::optim {

/// The learning rate as a pure function of the step. With w warm-up, T total and C cool-down steps:
/// - s < w: base (s + 1) / w, so the first step is not lost;
/// - "constant": base;
/// - "cosine": base (1 + cos(pi (s - w) / (T - w))) / 2;
/// - "constant_cooldown": base until T - C, then end + (base - end) (1 - (s - (T - C)) / C)^power.
/// From T on: the value the curve ends at. Source: open_clip_train 3.3.0.
class CONTRASTIVE_API Schedule {
 public:
  /// Args: cooldown_* are for "constant_cooldown" only.
  /// Throws: ConfigError if the kind is unknown, a number is negative, or warm-up or cool-down is longer than the run.
  Schedule(const std::string& kind, double base_lr, int64_t warmup_steps, int64_t total_steps,
           int64_t cooldown_steps = 0, double cooldown_power = 1.0, double cooldown_end_lr = 0.0);

  /// The learning rate of step `step`, from 0.
  double at(int64_t step) const;

  int64_t total_steps() const { return total_steps_; }

 private:
  enum class Kind { constant, cosine, constant_cooldown };
  static Kind parse_kind(const std::string& kind);
  double cosine(int64_t step) const;
  double cooldown(int64_t step) const;

  Kind kind_;
  double base_lr_;
  int64_t warmup_steps_;
  int64_t total_steps_;
  int64_t cooldown_steps_;
  double cooldown_power_;
  double cooldown_end_lr_;
};

}  // namespace contrastive::optim
