#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace contrastive::tools {

/// How many items of a known number are done, with rate and time left: redrawn on a terminal, a line every ten seconds
/// (and none for shorter work) elsewhere.
class CountProgress {
 public:
  /// `what` stands at the start of the line. Counting starts at `first`.
  CountProgress(std::string what, int64_t first, int64_t total, std::FILE* stream = stdout);

  /// `note` follows the rate.
  void update(int64_t done, const std::string& note = "");

 private:
  using Clock = std::chrono::steady_clock;

  std::string what_;
  int64_t first_;
  int64_t total_;
  std::FILE* stream_;
  bool is_terminal_;
  bool has_shown_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_ = start_;
};

}  // namespace contrastive::tools
