#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>

#include <torch/types.h>

#include "contrastive/distributed/process_group.h"
#include "contrastive/train/run_options.h"

namespace contrastive::train::detail {

/// Says when something that happens every so many steps or minutes is due.
class Interval {
 public:
  Interval(std::optional<int64_t> every_steps, std::optional<double> every_minutes, int64_t first_step)
      : every_steps_(every_steps), every_minutes_(every_minutes), first_step_(first_step) {}

  /// At the multiples, also right after resuming at one.
  bool due_by_steps(int64_t step) const { return every_steps_ && step > 0 && step % *every_steps_ == 0; }

  /// Counted from the last restart.
  bool due_by_time(int64_t step) const;

  void restart() { last_ = std::chrono::steady_clock::now(); }

 private:
  std::optional<int64_t> every_steps_;
  std::optional<double> every_minutes_;
  int64_t first_step_;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

/// What all ranks do before their next step.
struct Due {
  bool checkpoint = false;
  bool evaluation = false;
  bool stop = false;
  int64_t bad_samples = 0;  ///< met so far in this session, by all ranks
};

/// Makes the ranks agree on when to save, to evaluate and to stop: whatever one rank was asked (stop) or rank 0's clock
/// says, all do at the same step. They exchange it while a step runs, so what comes up before one step is done before
/// the next; a process alone does it at once.
class Pace {
 public:
  Pace(const RunOptions& options, int64_t first_step, const distributed::ProcessGroup& group,
       std::function<bool()> stop_requested);

  /// To be called on every rank before every step. `bad_samples`: met by this rank.
  Due before_step(int64_t step, int64_t bad_samples);

  void saved() { checkpoint_.restart(); }
  void evaluated() { evaluation_.restart(); }

  /// After the last step.
  void finish() { exchange_.wait(); }

 private:
  torch::Tensor own_wishes(int64_t step, int64_t bad_samples) const;
  torch::Tensor agree(const torch::Tensor& own);

  distributed::ProcessGroup group_;
  std::function<bool()> stop_requested_;
  Interval checkpoint_, evaluation_;
  torch::Tensor under_way_;  ///< [4] int64, being summed over the ranks
  distributed::Pending exchange_;
};

}  // namespace contrastive::train::detail
