#include "contrastive/optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include <fmt/format.h>

#include "contrastive/core/error.h"

namespace contrastive::optim {
namespace {

void require(bool condition, const std::string& message) {
  if (!condition) throw ConfigError("[schedule] " + message);
}

double ratio(int64_t part, int64_t whole) {
  return static_cast<double>(part) / static_cast<double>(whole);
}

}  // namespace

Schedule::Schedule(const std::string& kind, double base_lr, int64_t warmup_steps, int64_t total_steps,
                   int64_t cooldown_steps, double cooldown_power, double cooldown_end_lr)
    : kind_(parse_kind(kind)),
      base_lr_(base_lr),
      warmup_steps_(warmup_steps),
      total_steps_(total_steps),
      cooldown_steps_(cooldown_steps),
      cooldown_power_(cooldown_power),
      cooldown_end_lr_(cooldown_end_lr) {
  require(std::isfinite(base_lr) && base_lr >= 0, fmt::format("lr must be at least 0, but is {}", base_lr));
  require(total_steps >= 0, fmt::format("the number of steps must be at least 0, but is {}", total_steps));
  require(warmup_steps >= 0 && warmup_steps <= total_steps,
          fmt::format("warmup_steps must be in [0, {}] (the steps of the run), but is {}", total_steps, warmup_steps));
  if (kind_ != Kind::constant_cooldown) return;
  require(
      cooldown_steps >= 0 && cooldown_steps <= total_steps,
      fmt::format("cooldown_steps must be in [0, {}] (the steps of the run), but is {}", total_steps, cooldown_steps));
  require(cooldown_power > 0, fmt::format("cooldown_power must be above 0, but is {}", cooldown_power));
  require(cooldown_end_lr >= 0, fmt::format("cooldown_end_lr must be at least 0, but is {}", cooldown_end_lr));
}

Schedule::Kind Schedule::parse_kind(const std::string& kind) {
  if (kind == "constant") return Kind::constant;
  if (kind == "cosine") return Kind::cosine;
  if (kind == "constant_cooldown") return Kind::constant_cooldown;
  throw ConfigError(fmt::format("[schedule] expected constant, cosine or constant_cooldown, found {}", kind));
}

double Schedule::at(int64_t step) const {
  if (step < warmup_steps_) return base_lr_ * static_cast<double>(step + 1) / static_cast<double>(warmup_steps_);
  const auto bounded = std::min(step, total_steps_);
  switch (kind_) {
    case Kind::cosine:
      return cosine(bounded);
    case Kind::constant_cooldown:
      return cooldown(bounded);
    case Kind::constant:
      break;
  }
  return base_lr_;
}

double Schedule::cosine(int64_t step) const {
  if (step == total_steps_) return 0.0;
  const auto progress = ratio(step - warmup_steps_, total_steps_ - warmup_steps_);
  return 0.5 * (1 + std::cos(std::numbers::pi * progress)) * base_lr_;
}

double Schedule::cooldown(int64_t step) const {
  const auto begin = total_steps_ - cooldown_steps_;
  if (step < begin || cooldown_steps_ == 0) return base_lr_;
  const auto decay = std::pow(1 - ratio(step - begin, cooldown_steps_), cooldown_power_);
  return decay * (base_lr_ - cooldown_end_lr_) + cooldown_end_lr_;
}

}  // namespace contrastive::optim
