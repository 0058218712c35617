#include "common/count_progress.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>
#include <unistd.h>

namespace contrastive::tools {
namespace {

constexpr std::chrono::milliseconds kTerminalInterval{200};
constexpr std::chrono::seconds kPlainInterval{10};

}  // namespace

CountProgress::CountProgress(std::string what, int64_t first, int64_t total, std::FILE* stream)
    : what_(std::move(what)),
      first_(first),
      total_(total),
      stream_(stream),
      is_terminal_(::isatty(::fileno(stream)) != 0) {}

void CountProgress::update(int64_t done, const std::string& note) {
  const auto now = Clock::now();
  const bool is_last = done >= total_;
  const bool is_quiet = is_terminal_ ? now - last_ < kTerminalInterval : now - last_ < kPlainInterval;
  if (is_quiet && !(is_last && (is_terminal_ || has_shown_))) return;
  last_ = now;
  has_shown_ = true;
  const double rate = static_cast<double>(done - first_) / std::chrono::duration<double>(now - start_).count();
  const auto left = static_cast<int64_t>(static_cast<double>(total_ - done) / std::max(rate, 1e-9));
  fmt::print(stream_, "{}{}{}/{} ({:.1f} %)  {:.1f}/s{}  left {}:{:02}{}", is_terminal_ ? "\r\x1b[K" : "", what_, done,
             total_, 100.0 * static_cast<double>(done) / static_cast<double>(total_), rate,
             note.empty() ? "" : "  " + note, left / 60, left % 60, is_terminal_ && !is_last ? "" : "\n");
  std::fflush(stream_);
}

}  // namespace contrastive::tools
