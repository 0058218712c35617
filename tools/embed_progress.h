#pragma once

#include <chrono>
#include <cstdint>

namespace contrastive::tools {

/// How far the embedding of a collection is, on stdout: redrawn on a terminal, a line every ten seconds elsewhere.
class EmbedProgress {
 public:
  /// `left_out`: what inputs without an embedding are called.
  EmbedProgress(int64_t first, int64_t total, const char* left_out);

  void update(int64_t done, int64_t num_left_out);

 private:
  using Clock = std::chrono::steady_clock;

  int64_t first_;
  int64_t total_;
  const char* left_out_;
  bool is_terminal_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_ = {};
};

}  // namespace contrastive::tools
