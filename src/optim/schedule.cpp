#include "contrastive/optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <utility>

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

void require_at_least_0(const char* name, double value) {
  require(std::isfinite(value) && value >= 0, fmt::format("{} must be at least 0, but is {}", name, value));
}

void require_above_0(const char* name, double value) {
  require(std::isfinite(value) && value > 0, fmt::format("{} must be above 0, but is {}", name, value));
}

}  // namespace

Schedule::Schedule(ScheduleOptions options, double base_lr, int64_t total_steps)
    : options_(std::move(options)), kind_(parse_kind(options_.schedule)), base_lr_(base_lr), total_steps_(total_steps) {
  validate();
  validate_curve();
}

void Schedule::validate() const {
  const auto& o = options_;
  require_at_least_0("lr", base_lr_);
  require(total_steps_ >= 0, fmt::format("the number of steps must be at least 0, but is {}", total_steps_));
  require(
      o.warmup_steps >= 0 && o.warmup_steps <= total_steps_,
      fmt::format("warmup_steps must be in [0, {}] (the steps of the run), but is {}", total_steps_, o.warmup_steps));
  require(o.warmup_from == "first_step" || o.warmup_from == "zero",
          fmt::format("warmup_from must be first_step or zero, but is {}", o.warmup_from));
  require(o.cooldown_steps >= 0 && o.cooldown_steps <= total_steps_,
          fmt::format("cooldown_steps must be in [0, {}] (the steps of the run), but is {}", total_steps_,
                      o.cooldown_steps));
  require_above_0("cooldown_power", o.cooldown_power);
  require_at_least_0("cooldown_end_lr", o.cooldown_end_lr);
}

void Schedule::validate_curve() const {
  const auto& o = options_;
  require_at_least_0("end", o.end);
  require_above_0("power", o.power);
  require_above_0("timescale", o.timescale);
  require_at_least_0("shift", o.shift);
  require(o.stair_steps.size() == o.stair_multipliers.size(),
          fmt::format("there are {} stair_steps, but {} stair_multipliers", o.stair_steps.size(),
                      o.stair_multipliers.size()));
  require(std::is_sorted(o.stair_steps.begin(), o.stair_steps.end(), std::less_equal<>()),
          "stair_steps must be ascending");
  for (const auto multiplier : o.stair_multipliers) require_at_least_0("a stair multiplier", multiplier);
}

Schedule::Kind Schedule::parse_kind(const std::string& kind) {
  if (kind == "constant" || kind == "constant_cooldown") return Kind::constant;
  if (kind == "cosine") return Kind::cosine;
  if (kind == "linear" || kind == "polynomial") return Kind::polynomial;
  if (kind == "rsqrt") return Kind::rsqrt;
  if (kind == "stair") return Kind::stair;
  throw ConfigError(
      fmt::format("[schedule] expected constant, cosine, constant_cooldown, linear, polynomial, rsqrt or stair, "
                  "found {}",
                  kind));
}

double Schedule::at(int64_t step) const {
  const auto bounded = std::min(step, total_steps_);
  const auto lr = curve(bounded);
  const bool warms_up = bounded < options_.warmup_steps;
  const bool from_zero = options_.warmup_from == "zero";
  const auto cool = warms_up && !from_zero ? lr : cooled(lr, bounded);
  if (!warms_up) return cool;
  const auto done = static_cast<double>(from_zero ? bounded : bounded + 1);
  return cool * done / static_cast<double>(options_.warmup_steps);
}

double Schedule::curve(int64_t step) const {
  switch (kind_) {
    case Kind::cosine:
      return step == total_steps_ ? 0.0 : 0.5 * (1 + std::cos(std::numbers::pi * progress(step))) * base_lr_;
    case Kind::polynomial:
      return polynomial(step);
    case Kind::rsqrt:
      return rsqrt(step);
    case Kind::stair:
      return stair(step);
    case Kind::constant:
      break;
  }
  return base_lr_;
}

double Schedule::progress(int64_t step) const {
  if (step >= total_steps_) return 1;
  return step <= options_.warmup_steps ? 0 : ratio(step - options_.warmup_steps, total_steps_ - options_.warmup_steps);
}

double Schedule::polynomial(int64_t step) const {
  const auto left = std::pow(1 - progress(step), options_.schedule == "linear" ? 1.0 : options_.power);
  return base_lr_ * (options_.end + (1 - options_.end) * left);
}

double Schedule::rsqrt(int64_t step) const {
  const auto done = static_cast<double>(std::max<int64_t>(step - options_.warmup_steps, 0)) + options_.shift;
  return base_lr_ / std::sqrt(1 + done / options_.timescale);
}

double Schedule::stair(int64_t step) const {
  const auto& steps = options_.stair_steps;
  const auto passed = std::upper_bound(steps.begin(), steps.end(), step) - steps.begin();
  return passed == 0 ? base_lr_ : base_lr_ * options_.stair_multipliers[static_cast<size_t>(passed) - 1];
}

double Schedule::cooled(double lr, int64_t step) const {
  const auto begin = total_steps_ - options_.cooldown_steps;
  if (step < begin || options_.cooldown_steps == 0) return lr;
  const auto left = std::pow(1 - ratio(step - begin, options_.cooldown_steps), options_.cooldown_power);
  return left * (lr - options_.cooldown_end_lr) + options_.cooldown_end_lr;
}

}  // namespace contrastive::optim
