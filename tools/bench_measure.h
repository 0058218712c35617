#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <vector>

namespace contrastive::tools {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Seconds of each repetition, ascending.
inline std::vector<double> time_each(int64_t repetitions, const std::function<void()>& action) {
  std::vector<double> seconds;
  for (int64_t i = 0; i < repetitions; ++i) {
    const auto start = Clock::now();
    action();
    seconds.push_back(seconds_since(start));
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds;
}

/// Of ascending values; the higher of the two in the middle.
inline double median(const std::vector<double>& ascending) {
  return ascending[ascending.size() / 2];
}

}  // namespace contrastive::tools
