#include "contrastive/optim/duration.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <string_view>

#include <fmt/format.h>

#include "contrastive/core/error.h"

namespace contrastive::optim {
namespace {

constexpr double kMaxSteps = 1e12;
constexpr double kPercent = 100;

std::string_view trimmed(std::string_view text) {
  const auto begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

[[noreturn]] void fail_parse(const std::string& text, const std::string& reason) {
  throw ConfigError(fmt::format(
      "[duration] expected a number of steps, samples, epochs or %, as \"5e6 samples\", found \"{}\"{}", text, reason));
}

double known(int64_t value, const std::string& duration, const char* what) {
  if (value <= 0) throw ConfigError(fmt::format("[duration] {} can't be told in steps: {} unknown", duration, what));
  return static_cast<double>(value);
}

}  // namespace

Duration Duration::parse(const std::string& text) {
  struct Name {
    std::string_view text;
    Unit unit;
  };
  static constexpr std::array kNames = {
      Name{"", Unit::steps},          Name{"steps", Unit::steps},    Name{"step", Unit::steps},
      Name{"samples", Unit::samples}, Name{"sample", Unit::samples}, Name{"examples", Unit::samples},
      Name{"example", Unit::samples}, Name{"epochs", Unit::epochs},  Name{"epoch", Unit::epochs},
      Name{"percent", Unit::percent}, Name{"%", Unit::percent}};
  const auto all = trimmed(text);
  Duration duration;
  const auto [end, error] = std::from_chars(all.data(), all.data() + all.size(), duration.count_);
  if (error != std::errc() || !std::isfinite(duration.count_)) fail_parse(text, "");
  if (duration.count_ < 0) fail_parse(text, ", which is negative");
  const auto unit = trimmed(all.substr(static_cast<size_t>(end - all.data())));
  for (const auto& name : kNames) {
    if (name.text != unit) continue;
    duration.unit_ = name.unit;
    if (name.unit == Unit::steps && duration.count_ != std::floor(duration.count_)) {
      fail_parse(text, ", which is no whole number");
    }
    if (name.unit == Unit::percent && duration.count_ > kPercent) fail_parse(text, ", which is more than the run");
    return duration;
  }
  fail_parse(text, fmt::format(": \"{}\" is no unit", unit));
}

int64_t Duration::steps(const DurationScale& scale) const {
  double steps = count_;
  if (unit_ == Unit::samples || unit_ == Unit::epochs) {
    const auto batch = known(scale.batch_size, to_string(), "the batch size is");
    if (unit_ == Unit::epochs) steps *= known(scale.samples_per_epoch, to_string(), "the samples of an epoch are");
    steps /= batch;
  } else if (unit_ == Unit::percent) {
    steps *= known(scale.total_steps, to_string(), "the steps of the run are") / kPercent;
  }
  if (steps > kMaxSteps) throw ConfigError(fmt::format("[duration] {} are {:.3g} steps", to_string(), steps));
  return count_ == 0 ? 0 : std::max<int64_t>(1, std::llrint(steps));
}

std::string Duration::to_string() const {
  static constexpr std::array kUnits = {"steps", "samples", "epochs", "%"};
  return fmt::format("{} {}", count_, kUnits[static_cast<size_t>(unit_)]);
}

}  // namespace contrastive::optim
