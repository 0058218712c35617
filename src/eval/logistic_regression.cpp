#include "contrastive/eval/logistic_regression.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <torch/utils.h>

#include "contrastive/core/error.h"
#include "contrastive/core/log.h"
#include "contrastive/models/precision.h"

#include "eval/lbfgs.h"
#include "eval/softmax_loss.h"

namespace contrastive::eval {
namespace {

constexpr int64_t kMaxTileRows = 1024;
constexpr int64_t kMinTileRows = 64;
constexpr int64_t kMaxTileNumbers = int64_t{1} << 22;
/// With fewer samples a feature, finding the covariance's eigenvectors takes longer than it saves.
constexpr int64_t kSamplesPerFeature = 4;
constexpr double kMinSpread = 1e-6;
constexpr double kNoiseFp32 = 1e-7;
constexpr double kNoiseFp64 = 1e-15;

int64_t default_tile_rows(int64_t dim, int64_t num_classes) {
  return std::clamp(kMaxTileNumbers / std::max(dim, num_classes), kMinTileRows, kMaxTileRows);
}

void check_part(const TrainingRows& part, const TrainingRows& first) {
  const auto& features = part.features;
  TORCH_CHECK(features.dim() == 2 && (features.scalar_type() == at::kFloat || features.scalar_type() == at::kDouble),
              "[logistic_regression] features must be fp32 or fp64 [N, D], but are ", features.scalar_type(), " ",
              features.sizes());
  TORCH_CHECK(features.size(1) == first.features.size(1) && features.scalar_type() == first.features.scalar_type() &&
                  features.device() == first.features.device(),
              "[logistic_regression] all parts' features must be ", first.features.scalar_type(), " [N, ",
              first.features.size(1), "] on ", first.features.device(), ", but one is ", features.scalar_type(), " ",
              features.sizes(), " on ", features.device());
  TORCH_CHECK(
      part.labels.dim() == 1 && part.labels.scalar_type() == at::kLong && part.labels.size(0) == features.size(0),
      "[logistic_regression] labels must be int64 [", features.size(0), "], but are ", part.labels.scalar_type(), " ",
      part.labels.sizes());
}

void check(const LogisticRegressionOptions& options) {
  if (!(options.c > 0) || !std::isfinite(options.c)) {
    throw ConfigError(fmt::format("[logistic_regression] c must be above 0, but is {}", options.c));
  }
  if (options.max_iterations < 1 || !(options.tolerance > 0) || !(options.objective_tolerance > 0)) {
    throw ConfigError(
        fmt::format("[logistic_regression] max_iterations must be at least 1 and the tolerances above 0, but are {}, "
                    "{} and {}",
                    options.max_iterations, options.tolerance, options.objective_tolerance));
  }
}

void check_labels(const torch::Tensor& labels, int64_t num_classes) {
  if (labels.size(0) == 0) throw DataError("[logistic_regression] there are no samples to learn from");
  const auto smallest = labels.min().item<int64_t>(), largest = labels.max().item<int64_t>();
  if (smallest < 0 || largest >= num_classes) {
    throw DataError(fmt::format("[logistic_regression] labels must be in [0, {}), but range from {} to {}", num_classes,
                                smallest, largest));
  }
  if (smallest == largest) {
    throw DataError(
        fmt::format("[logistic_regression] samples of at least two classes are needed, but all {} are of class {}",
                    labels.size(0), smallest));
  }
}

}  // namespace

torch::Tensor LinearClassifier::scores(const torch::Tensor& features) const {
  const models::AutocastGuard full_precision(features.device().type(), false);
  return at::addmm(bias, features, weights.t());
}

/// Works on mean losses and centred features: scores are W (x - mean) + offset.
class LogisticRegression::Problem {
 public:
  Problem(std::vector<TrainingRows> parts, int64_t num_classes);

  LogisticRegressionResult fit(const LogisticRegressionOptions& options, const std::optional<LinearClassifier>& start);
  Objective objective(const LinearClassifier& classifier, double c);

  int64_t num_samples() const { return num_samples_; }
  torch::Device device() const { return options_.device(); }
  int64_t tile_rows = 0;

 private:
  class Function;

  /// Of all samples' losses; gradients in fp64.
  struct Sums {
    detail::SoftmaxSums softmax;
    torch::Tensor weights;  ///< [C, D]
    torch::Tensor bias;     ///< [C]
  };

  template <typename Visit>
  void for_each_tile(const Visit& visit) const;
  Sums sums(const torch::Tensor& weights, const torch::Tensor& bias) const;
  double penalty_scale(double c) const;
  void find_moments();
  torch::Tensor divide_by_curvature(const torch::Tensor& vector, double spread, double penalty) const;
  [[noreturn]] void fail_on_features() const;

  torch::Tensor to_point(const std::optional<LinearClassifier>& start) const;
  LinearClassifier to_classifier(const torch::Tensor& point) const;
  void warn_unless_converged(const LogisticRegressionResult& result, const LogisticRegressionOptions& options) const;

  std::vector<TrainingRows> parts_;  ///< with the chosen rows' labels
  int64_t num_classes_;
  int64_t dim_;
  int64_t num_samples_ = 0;
  at::TensorOptions options_;
  torch::Tensor mean_;          ///< [D] fp64
  torch::Tensor variances_;     ///< [D] fp64, of the features, or along the eigenvectors of their covariance
  torch::Tensor eigenvectors_;  ///< [D, D]; undefined where they aren't used
};

LogisticRegression::Problem::Problem(std::vector<TrainingRows> parts, int64_t num_classes)
    : parts_(std::move(parts)), num_classes_(num_classes) {
  TORCH_CHECK(!parts_.empty() && num_classes >= 2,
              "[logistic_regression] parts and at least two classes are needed, but there are ", parts_.size(), " and ",
              num_classes);
  std::vector<torch::Tensor> labels;
  for (auto& part : parts_) {
    check_part(part, parts_.front());
    const auto device = part.features.device();
    part.features = part.features.detach();
    part.labels = part.labels.to(device);
    if (part.rows.defined()) {
      part.rows = part.rows.to(device);
      part.labels = part.labels.index_select(0, part.rows);
    }
    labels.push_back(part.labels);
    num_samples_ += part.labels.size(0);
  }
  check_labels(at::cat(labels), num_classes);
  options_ = parts_.front().features.options();
  dim_ = parts_.front().features.size(1);
  tile_rows = default_tile_rows(dim_, num_classes_);
}

/// Calls `visit` with the features [T, D] and labels [T] of each tile.
template <typename Visit>
void LogisticRegression::Problem::for_each_tile(const Visit& visit) const {
  for (const auto& part : parts_) {
    for (int64_t begin = 0; begin < part.labels.size(0); begin += tile_rows) {
      const auto end = std::min(part.labels.size(0), begin + tile_rows);
      const auto tile = part.rows.defined() ? part.features.index_select(0, part.rows.slice(0, begin, end))
                                            : part.features.slice(0, begin, end);
      visit(tile, part.labels.slice(0, begin, end));
    }
  }
}

LogisticRegression::Problem::Sums LogisticRegression::Problem::sums(const torch::Tensor& weights,
                                                                    const torch::Tensor& bias) const {
  const auto fp64 = options_.dtype(at::kDouble);
  Sums total{{}, at::zeros({num_classes_, dim_}, fp64), at::zeros({num_classes_}, fp64)};
  const auto own_weights = weights.to(options_).contiguous(), own_bias = bias.to(options_).contiguous();
  auto products = at::empty({num_classes_, std::min(tile_rows, num_samples_)}, options_);
  auto gradient = at::empty({num_classes_, dim_}, options_);
  for_each_tile([&](const torch::Tensor& features, const torch::Tensor& labels) {
    if (products.size(1) != features.size(0)) products = at::empty({num_classes_, features.size(0)}, options_);
    at::mm_out(products, own_weights, features.t());
    const auto tile = detail::softmax_loss(products, own_bias, labels);
    at::mm_out(gradient, products, features);
    total.softmax.loss += tile.loss;
    total.softmax.spread += tile.spread;
    total.weights.add_(gradient);
    total.bias.add_(products.sum(at::IntArrayRef{1}, /*keepdim=*/false, at::kDouble));
  });
  return total;
}

/// Of |W|^2 / 2, for mean losses.
double LogisticRegression::Problem::penalty_scale(double c) const {
  return (num_classes_ == 2 ? 2.0 : 1.0) / (c * static_cast<double>(num_samples_));
}

void LogisticRegression::Problem::find_moments() {
  if (mean_.defined()) return;
  const auto fp64 = options_.dtype(at::kDouble);
  const bool with_covariance = num_samples_ >= kSamplesPerFeature * dim_;
  const auto n = static_cast<double>(num_samples_);
  auto sum = at::zeros({dim_}, fp64), squares = at::zeros({dim_, with_covariance ? dim_ : 1}, fp64);
  for_each_tile([&](const torch::Tensor& features, const torch::Tensor&) {
    sum.add_(features.sum(at::IntArrayRef{0}, /*keepdim=*/false, at::kDouble));
    squares.add_(with_covariance ? features.t().mm(features) : features.square().sum(0).unsqueeze(1));
  });
  if (!sum.isfinite().all().item<bool>() || !squares.isfinite().all().item<bool>()) fail_on_features();
  mean_ = sum / n;
  if (with_covariance) {
    const auto [values, vectors] = at::linalg_eigh(squares / n - mean_.outer(mean_));
    variances_ = values.clamp_min(0);
    eigenvectors_ = vectors.to(options_).contiguous();
  } else {
    variances_ = (squares.squeeze(1) / n - mean_.square()).clamp_min(0);
  }
}

void LogisticRegression::Problem::fail_on_features() const {
  int64_t sample = 0;
  for_each_tile([&](const torch::Tensor& features, const torch::Tensor&) {
    const auto is_bad = features.isfinite().all(1).logical_not();
    if (is_bad.any().item<bool>()) {
      throw DataError(fmt::format("[logistic_regression] the features of sample {} hold a number that isn't finite",
                                  sample + is_bad.to(at::kInt).argmax().item<int64_t>()));
    }
    sample += features.size(0);
  });
  throw DataError("[logistic_regression] the features are too large: their sums overflow");
}

/// Weights with the offset beside them. [C, D + 1] fp64
torch::Tensor LogisticRegression::Problem::to_point(const std::optional<LinearClassifier>& start) const {
  if (!start) return at::zeros({num_classes_, dim_ + 1}, options_.dtype(at::kDouble));
  TORCH_CHECK(start->weights.sizes() == at::IntArrayRef({num_classes_, dim_}) &&
                  start->bias.sizes() == at::IntArrayRef({num_classes_}),
              "[logistic_regression] the start must have weights [", num_classes_, ", ", dim_, "] and as many biases, ",
              "but has ", start->weights.sizes(), " and ", start->bias.sizes());
  const auto weights = start->weights.to(mean_.options()), bias = start->bias.to(mean_.options());
  return at::cat({weights, (bias + weights.mv(mean_)).unsqueeze(1)}, 1);
}

LinearClassifier LogisticRegression::Problem::to_classifier(const torch::Tensor& point) const {
  const auto weights = point.slice(1, 0, dim_);
  const auto bias = point.select(1, dim_) - weights.mv(mean_);
  return {weights.to(options_).contiguous(), bias.to(options_)};
}

/// The covariance's eigenvectors turn the second derivative, averaged over the classes, into a diagonal; without them
/// its own diagonal has to do.
torch::Tensor LogisticRegression::Problem::divide_by_curvature(const torch::Tensor& vector, double spread,
                                                               double penalty) const {
  const double curvature = std::max(spread / static_cast<double>(num_classes_ - 1), kMinSpread);
  const auto matrix = vector.view({num_classes_, dim_ + 1});
  const auto scale = (variances_ * curvature + penalty).reciprocal().to(options_);  // [D]
  auto weights = matrix.slice(1, 0, dim_);
  weights = eigenvectors_.defined() ? weights.mm(eigenvectors_).mul_(scale).mm(eigenvectors_.t()) : weights * scale;
  return at::cat({weights, matrix.slice(1, dim_) / curvature}, 1).view(-1);
}

/// The mean loss with its penalty at a point, for L-BFGS, and what is asked about the point afterwards.
class LogisticRegression::Problem::Function {
 public:
  Function(const Problem& problem, const LogisticRegressionOptions& options)
      : problem_(problem), options_(options), penalty_(problem.penalty_scale(options.c)) {}

  double value(const torch::Tensor& point, torch::Tensor& gradient) {
    const auto n = static_cast<double>(problem_.num_samples_);
    const auto dim = problem_.dim_;
    const auto matrix = point.view({problem_.num_classes_, dim + 1});
    const auto weights = matrix.slice(1, 0, dim);
    const auto sums = problem_.sums(weights, matrix.select(1, dim) - weights.mv(problem_.mean_));
    const auto by_bias = sums.bias / n;
    auto by_weights = (sums.weights / n).add_(weights, penalty_);
    max_gradient = std::max(by_weights.abs().max().item<double>(), by_bias.abs().max().item<double>());
    if (!spread_) spread_ = sums.softmax.spread / n;
    auto by_point = gradient.view(matrix.sizes());
    by_point.slice(1, 0, dim).copy_(by_weights.addr_(by_bias, problem_.mean_, 1, -1));
    by_point.select(1, dim).copy_(by_bias);
    return sums.softmax.loss / n + penalty_ / 2 * weights.square().sum().item<double>();
  }

  detail::LbfgsFunction for_lbfgs() {
    detail::LbfgsFunction function;
    function.value = [this](const torch::Tensor& point, torch::Tensor& gradient) { return value(point, gradient); };
    function.precondition = [this](const torch::Tensor& vector) {
      return problem_.divide_by_curvature(vector, *spread_, penalty_);
    };
    function.is_done = [this](double value, const torch::Tensor&, double decrease) {
      return max_gradient <= options_.tolerance && decrease <= options_.objective_tolerance * value;
    };
    return function;
  }

  double max_gradient = 0;  ///< by weights and bias, where value() was asked last

 private:
  const Problem& problem_;
  const LogisticRegressionOptions& options_;
  double penalty_;
  std::optional<double> spread_;  ///< at the start
};

LogisticRegressionResult LogisticRegression::Problem::fit(const LogisticRegressionOptions& options,
                                                          const std::optional<LinearClassifier>& start) {
  check(options);
  find_moments();
  Function function(*this, options);
  const bool is_fp32 = options_.dtype() == at::kFloat;
  const auto found = detail::minimise(function.for_lbfgs(), to_point(start).view(-1),
                                      {.max_iterations = options.max_iterations,
                                       .history_dtype = is_fp32 ? at::kFloat : at::kDouble,
                                       .noise = is_fp32 ? kNoiseFp32 : kNoiseFp64});
  LogisticRegressionResult result;
  result.classifier = to_classifier(found.point.view({num_classes_, dim_ + 1}));
  result.objective = found.value * options.c * static_cast<double>(num_samples_);
  result.max_gradient = function.max_gradient;
  result.iterations = found.iterations;
  result.evaluations = found.evaluations;
  result.converged = found.converged;
  warn_unless_converged(result, options);
  return result;
}

void LogisticRegression::Problem::warn_unless_converged(const LogisticRegressionResult& result,
                                                        const LogisticRegressionOptions& options) const {
  if (result.converged) return;
  const auto* reason = result.iterations < options.max_iterations ? "the precision of the features' dtype is used up"
                                                                  : "max_iterations is reached";
  log(LogLevel::warning,
      fmt::format("[logistic_regression] c = {:g}: stopped after {} iterations, before convergence: {}; the largest "
                  "gradient is {:.2g} (tolerance {:g})",
                  options.c, result.iterations, reason, result.max_gradient, options.tolerance));
}

LogisticRegression::Objective LogisticRegression::Problem::objective(const LinearClassifier& classifier, double c) {
  find_moments();
  const auto weights = classifier.weights.to(mean_.options());
  const auto found = sums(weights, classifier.bias);
  const double penalty = penalty_scale(c) * c * static_cast<double>(num_samples_);
  return {found.softmax.loss * c + penalty / 2 * weights.square().sum().item<double>(),
          found.weights * c + weights * penalty, found.bias * c};
}

LogisticRegression::LogisticRegression(std::vector<TrainingRows> parts, int64_t num_classes)
    : problem_(std::make_unique<Problem>(std::move(parts), num_classes)) {}

LogisticRegression::LogisticRegression(const torch::Tensor& features, const torch::Tensor& labels, int64_t num_classes)
    : LogisticRegression({{.features = features, .labels = labels}}, num_classes) {}

LogisticRegression::~LogisticRegression() = default;

LogisticRegressionResult LogisticRegression::fit(const LogisticRegressionOptions& options,
                                                 const std::optional<LinearClassifier>& start) {
  const torch::NoGradGuard no_grad;
  const models::AutocastGuard full_precision(problem_->device().type(), false);
  return problem_->fit(options, start);
}

LogisticRegression::Objective LogisticRegression::objective(const LinearClassifier& classifier, double c) {
  const torch::NoGradGuard no_grad;
  const models::AutocastGuard full_precision(problem_->device().type(), false);
  return problem_->objective(classifier, c);
}

int64_t LogisticRegression::num_samples() const {
  return problem_->num_samples();
}

void LogisticRegression::set_tile_rows(int64_t rows) {
  TORCH_CHECK(rows >= 1, "[logistic_regression] a tile must have at least one row, but has ", rows);
  problem_->tile_rows = rows;
}

}  // namespace contrastive::eval
