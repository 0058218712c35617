#include "eval/lbfgs.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <optional>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"

namespace contrastive::eval::detail {
namespace {

constexpr double kSufficientDecrease = 1e-4;
constexpr double kCurvature = 0.9;
constexpr int kMaxTrials = 30;
constexpr double kMaxGrowth = 10;
/// Iterations that may pass without progress: a value lower by this share of the noise, or a gradient that much
/// shorter.
constexpr int kMaxWithoutProgress = 5;
constexpr double kNoiseShare = 0.1;
constexpr double kShorterGradient = 0.9;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

double product(const torch::Tensor& a, const torch::Tensor& b) {
  return a.dot(b).item<double>();
}

struct Point {
  torch::Tensor place;
  torch::Tensor gradient;
  double value = kInfinity;
};

/// A trial of the line search: value and slope at a step length.
struct Trial {
  double step = 0;
  double value = kInfinity;
  double slope = 0;
};

/// The minimum of the cubic through two trials, kept away from both; the middle if there is none.
double between(const Trial& low, const Trial& high) {
  const double width = high.step - low.step;
  const double middle = low.step + 0.5 * width;
  if (!std::isfinite(high.value) || !std::isfinite(high.slope)) return low.step + 0.1 * width;
  const double d1 = low.slope + high.slope - 3 * (high.value - low.value) / width;
  const double square = d1 * d1 - low.slope * high.slope;
  if (!(square >= 0)) return middle;
  const double d2 = std::sqrt(square);
  const double step = high.step - width * (high.slope + d2 - d1) / (high.slope - low.slope + 2 * d2);
  return std::isfinite(step) ? std::clamp(step, low.step + 0.05 * width, low.step + 0.95 * width) : middle;
}

/// The latest steps with the changes of the gradient.
class History {
 public:
  explicit History(const LbfgsFunction& function, const LbfgsOptions& options)
      : function_(function), options_(options) {}

  bool is_empty() const { return pairs_.empty(); }
  void clear() { pairs_.clear(); }

  void add(const torch::Tensor& step, const torch::Tensor& change) {
    const double curvature = product(step, change);
    if (!(curvature > std::numeric_limits<double>::epsilon() * product(change, change) * 1e-3)) return;
    if (static_cast<int64_t>(pairs_.size()) == options_.history) pairs_.pop_front();
    pairs_.push_back({step.to(options_.history_dtype), change.to(options_.history_dtype), 1 / curvature});
  }

  /// Minus the estimated inverse second derivative times the gradient, by the two-loop recursion.
  torch::Tensor direction(const torch::Tensor& gradient) const {
    auto result = gradient.to(options_.history_dtype).neg();
    std::vector<double> shares(pairs_.size());
    for (size_t i = pairs_.size(); i-- > 0;) {
      shares[i] = pairs_[i].inverse_curvature * product(pairs_[i].step, result);
      result.sub_(pairs_[i].change, shares[i]);
    }
    result = preconditioned(result);
    if (!pairs_.empty()) {
      const auto& [step, change, inverse_curvature] = pairs_.back();
      result.mul_(1 / (inverse_curvature * product(change, preconditioned(change))));
    }
    for (size_t i = 0; i < pairs_.size(); ++i) {
      const double share = pairs_[i].inverse_curvature * product(pairs_[i].change, result);
      result.add_(pairs_[i].step, shares[i] - share);
    }
    return result.to(at::kDouble);
  }

 private:
  struct Pair {
    torch::Tensor step;
    torch::Tensor change;
    double inverse_curvature;
  };

  torch::Tensor preconditioned(const torch::Tensor& vector) const {
    return function_.precondition ? function_.precondition(vector) : vector.clone();
  }

  const LbfgsFunction& function_;
  const LbfgsOptions& options_;
  std::deque<Pair> pairs_;
};

class LineSearch {
 public:
  LineSearch(const LbfgsFunction& function, double noise, int64_t& evaluations)
      : function_(function), noise_(noise), evaluations_(evaluations) {}

  /// A point along the direction that is low and flat enough; nothing if there is none within the precision.
  std::optional<Point> operator()(const Point& start, const torch::Tensor& direction, double first_step) {
    const Trial origin{0, start.value, product(start.gradient, direction)};
    if (!(origin.slope < 0)) return std::nullopt;
    Trial low = origin, high{kInfinity, kInfinity, 0};
    double step = first_step;
    for (int trial = 0; trial < kMaxTrials; ++trial) {
      Point point{start.place.add(direction, step), at::empty_like(start.gradient), kInfinity};
      point.value = function_.value(point.place, point.gradient);
      ++evaluations_;
      const Trial now{step, point.value, product(point.gradient, direction)};
      const bool is_low = decreases(origin, now);
      if (is_low && std::abs(now.slope) <= -kCurvature * origin.slope) return point;
      (is_low && now.slope < 0 ? low : high) = now;
      step = std::isfinite(high.step) ? between(low, high) : step * kMaxGrowth;
      if (!(std::abs(step - low.step) * direction.abs().max().item<double>() > 0)) return std::nullopt;
    }
    return std::nullopt;
  }

 private:
  bool decreases(const Trial& origin, const Trial& now) const {
    if (!std::isfinite(now.value) || !std::isfinite(now.slope)) return false;
    if (now.value <= origin.value + kSufficientDecrease * now.step * origin.slope) return true;
    return now.value <= origin.value + noise_ * std::abs(origin.value) &&
           now.slope <= (2 * kSufficientDecrease - 1) * origin.slope;
  }

  const LbfgsFunction& function_;
  double noise_;
  int64_t& evaluations_;
};

/// Notices when rounding errors are all that is left.
class Progress {
 public:
  explicit Progress(double noise) : noise_(noise) {}

  void add(const Point& point) {
    const double length = point.gradient.norm().item<double>();
    const bool is_lower = !(point.value >= value_ - noise_ * kNoiseShare * std::abs(value_));
    const bool is_flatter = !(length >= kShorterGradient * length_);
    without_ = is_lower || is_flatter ? 0 : without_ + 1;
    value_ = std::min(value_, point.value);
    length_ = std::min(length_, length);
  }

  bool has_ended() const { return without_ > kMaxWithoutProgress; }

 private:
  double noise_;
  double value_ = std::numeric_limits<double>::max();
  double length_ = std::numeric_limits<double>::max();
  int without_ = 0;
};

}  // namespace

LbfgsResult minimise(const LbfgsFunction& function, const torch::Tensor& start, const LbfgsOptions& options) {
  Point now{start.to(at::kDouble).clone(), at::zeros_like(start, at::kDouble), kInfinity};
  LbfgsResult result;
  now.value = function.value(now.place, now.gradient);
  result.evaluations = 1;
  if (!std::isfinite(now.value)) throw Error(fmt::format("[lbfgs] the value at the start is {}", now.value));

  History history(function, options);
  LineSearch search(function, options.noise, result.evaluations);
  Progress progress(options.noise);
  progress.add(now);
  while (true) {
    const auto direction = history.direction(now.gradient);
    const double decrease = -0.5 * product(now.gradient, direction);
    result.converged = function.is_done(now.value, now.gradient, decrease);
    if (result.converged || result.iterations >= options.max_iterations || progress.has_ended()) break;
    const bool is_scaled = !history.is_empty() || function.precondition;
    const double first_step = is_scaled ? 1 : std::min(1.0, 1 / now.gradient.norm().item<double>());
    auto next = search(now, direction, first_step);
    if (!next) {
      if (history.is_empty()) break;
      history.clear();
      continue;
    }
    history.add(next->place - now.place, next->gradient - now.gradient);
    now = *next;
    ++result.iterations;
    progress.add(now);
  }
  result.point = now.place;
  result.value = now.value;
  return result;
}

}  // namespace contrastive::eval::detail
