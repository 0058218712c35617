#include "common/progress.h"

#include <algorithm>
#include <cstdio>

#include <fmt/format.h>
#include <unistd.h>

namespace contrastive::tools {
namespace {

constexpr std::chrono::milliseconds kTerminalInterval{100};
constexpr std::chrono::seconds kPlainInterval{10};

std::string duration_text(double seconds) {
  const auto whole = static_cast<int64_t>(seconds);
  return whole >= 3600 ? fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60)
                       : fmt::format("{}:{:02}", whole / 60, whole % 60);
}

}  // namespace

Progress::Progress(int64_t first_step, int64_t total_steps)
    : first_step_(first_step), total_steps_(total_steps), is_terminal_(::isatty(STDOUT_FILENO) != 0) {}

void Progress::step(const train::StepMetrics& metrics) {
  const auto now = Clock::now();
  const auto elapsed = now - last_;
  const bool is_last = metrics.step == total_steps_;
  if (!is_last && (is_terminal_ ? elapsed < kTerminalInterval : elapsed < kPlainInterval)) return;
  last_ = now;
  if (is_terminal_) {
    draw(line(metrics));
  } else {
    fmt::print("{}\n", line(metrics));
    std::fflush(stdout);
  }
}

void Progress::message(const std::string& text) {
  finish();
  fmt::print("{}\n", text);
  std::fflush(stdout);
}

void Progress::finish() {
  if (is_drawn_) fmt::print("\n");
  is_drawn_ = false;
  std::fflush(stdout);
}

std::string Progress::line(const train::StepMetrics& m) const {
  const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  const auto done = std::max<int64_t>(1, m.step - first_step_);
  const double remaining = seconds / static_cast<double>(done) * static_cast<double>(total_steps_ - m.step);
  auto text = fmt::format(
      "step {}/{}  loss {:.4f}  in-batch top-1 {:.1f} %  scale {:.1f}  lr {:.2e}  {:.1f} samples/s  wait {:.0f} of "
      "{:.0f} ms  "
      "left {}",
      m.step, total_steps_, m.loss, m.accuracy * 100, m.logit_scale, m.lr, m.samples_per_s, m.data_wait_ms, m.step_ms,
      duration_text(remaining));
  if (m.skipped_samples > 0) text += fmt::format("  skipped {} samples", m.skipped_samples);
  if (m.skipped_steps > 0) text += fmt::format("  skipped {} steps", m.skipped_steps);
  return text;
}

void Progress::draw(const std::string& text) {
  fmt::print("\r\x1b[K{}", text);
  std::fflush(stdout);
  is_drawn_ = true;
}

}  // namespace contrastive::tools
