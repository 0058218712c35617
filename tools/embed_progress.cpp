#include "embed_progress.h"

#include <algorithm>
#include <cstdio>

#include <fmt/format.h>
#include <unistd.h>

namespace contrastive::tools {

EmbedProgress::EmbedProgress(int64_t first, int64_t total, const char* left_out)
    : first_(first), total_(total), left_out_(left_out), is_terminal_(::isatty(STDOUT_FILENO) != 0) {}

void EmbedProgress::update(int64_t done, int64_t num_left_out) {
  const auto now = Clock::now();
  if (done < total_ && now - last_ < (is_terminal_ ? std::chrono::milliseconds(200) : std::chrono::seconds(10))) {
    return;
  }
  last_ = now;
  const double rate = static_cast<double>(done - first_) / std::chrono::duration<double>(now - start_).count();
  const auto left = static_cast<int64_t>(static_cast<double>(total_ - done) / std::max(rate, 1e-9));
  fmt::print("{}{}/{} ({:.1f} %)  {:.1f}/s  {} {}  left {}:{:02}{}", is_terminal_ ? "\r\x1b[K" : "", done, total_,
             100.0 * static_cast<double>(done) / static_cast<double>(total_), rate, left_out_, num_left_out, left / 60,
             left % 60, is_terminal_ && done < total_ ? "" : "\n");
  std::fflush(stdout);
}

}  // namespace contrastive::tools
