#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "contrastive/train/metrics.h"

namespace contrastive::tools {

/// Shows a run's steps on stdout: one line that is redrawn on a terminal, a plain line every so often elsewhere.
class Progress {
 public:
  Progress(int64_t first_step, int64_t total_steps);

  void step(const train::StepMetrics& metrics);

  /// A line of its own, above the redrawn one.
  void message(const std::string& text);

  /// Ends the redrawn line.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  std::string line(const train::StepMetrics& metrics) const;
  void draw(const std::string& text);

  int64_t first_step_;
  int64_t total_steps_;
  bool is_terminal_;
  bool is_drawn_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_ = {};
};

}  // namespace contrastive::tools
