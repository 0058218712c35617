#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/record_function.h>
#include <nlohmann/json.hpp>

namespace contrastive::tools {

/// Sums the time of every LibTorch operator and of the library's own marked stretches, by name and by part of a step,
/// from its start to its stop. A record's time is its own, without that of the records within it.
///
/// Sees the thread that made it and those on which LibTorch runs that thread's backward pass; on a GPU what is timed
/// are the launches. One at a time in a process.
class StepProfile {
 public:
  struct Sum {
    int64_t calls = 0;
    double seconds = 0;
    double flops = 0;  ///< of matrix products and convolutions whose shapes a record gives
  };

  StepProfile();
  ~StepProfile();
  StepProfile(const StepProfile&) = delete;
  StepProfile& operator=(const StepProfile&) = delete;

  /// Drops what was summed so far.
  void restart();

  /// Per step: {"parts": [...], "operators": [...]}, each by falling time, of `steps` steps that took `seconds` in all.
  /// The time that no record covers is a part as well.
  nlohmann::ordered_json result(int64_t steps, double seconds) const;

 private:
  at::CallbackHandle handle_;
};

/// The profile as a table for people, the figures in milliseconds of one step.
std::string profile_table(const nlohmann::ordered_json& profile);

}  // namespace contrastive::tools
