#include "contrastive/adapt/ape.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"

#include "adapt/cache_scores.h"

namespace contrastive::adapt {
namespace {

constexpr size_t kBeta = 0;
constexpr size_t kGamma = 1;
constexpr int64_t kRowsAtATime = 2048;
constexpr double kProbabilityOffset = 1e-6;

void require_weight(const char* option, double value) {
  if (std::isfinite(value) && value >= 0) return;
  throw ConfigError(fmt::format("[ape] {} must be at least 0, but is {}", option, value));
}

/// How well each dimension tells the classes apart. [D] fp64
torch::Tensor criterion(const SupportFeatures& support, const torch::Tensor& weights, const ApeOptions& options) {
  const auto text = weights.to(at::kDouble);
  const SupportFeatures keys{support.keys.to(at::kDouble), support.labels, support.num_classes, {}};
  const auto num_members = support.counts().to(at::kDouble).to(text.device()).unsqueeze(1) + 1;
  const auto means = (keys.class_sums() + text) / num_members;
  // The sum over pairs of different classes: all pairs without those of a class with itself.
  const auto between = means.sum(0).square() - means.square().sum(0);
  const auto num_classes = static_cast<double>(support.num_classes);
  const auto inter_class = between / (num_classes * (num_classes - 1));
  return text.var(0, /*unbiased=*/true) * options.text_variance_weight - inter_class * options.inter_class_weight;
}

torch::Tensor reduced(const torch::Tensor& rows, const torch::Tensor& dimensions) {
  const auto kept = rows.index_select(1, dimensions);
  return kept / kept.norm(2, 1, /*keepdim=*/true).clamp_min(1e-12);
}

/// The divergence of each key's softmax over the texts from its label, in bits. [M]
torch::Tensor label_divergences(const torch::Tensor& keys, const torch::Tensor& labels, const torch::Tensor& text) {
  auto divergences = at::empty({keys.size(0)}, keys.options());
  for (int64_t begin = 0; begin < keys.size(0); begin += kRowsAtATime) {
    const auto end = std::min(keys.size(0), begin + kRowsAtATime);
    const auto probabilities = keys.slice(0, begin, end).matmul(text.t()).to(at::kDouble).softmax(1);
    const auto own = probabilities.gather(1, labels.slice(0, begin, end).to(keys.device()).unsqueeze(1)).squeeze(1);
    divergences.slice(0, begin, end).copy_(((1 + kProbabilityOffset) / (own + kProbabilityOffset)).log2());
  }
  return divergences;
}

}  // namespace

Ape::Ape(ApeOptions options) : options_(options) {
  if (options_.dimensions < 0) {
    throw ConfigError(
        fmt::format("[ape] dimensions must be at least 1, or 0 for half of them, but is {}", options_.dimensions));
  }
  require_weight("inter_class_weight", options_.inter_class_weight);
  require_weight("text_variance_weight", options_.text_variance_weight);
}

std::vector<Parameter> Ape::parameters() const {
  return {{"beta", 1, half_open_grid(0.5, 10.5, 20), ParameterRole::shape},
          {"gamma", 0.1, {0, 0.1, 0.2, 0.3, 0.4}, ParameterRole::shape},
          {"alpha", 2, half_open_grid(0.25, 10.25, 40), ParameterRole::inner}};
}

std::map<std::string, std::string> Ape::settings() const {
  return {{"dimensions", fmt::format("{}", options_.dimensions)},
          {"inter_class_weight", fmt::format("{}", options_.inter_class_weight)},
          {"text_variance_weight", fmt::format("{}", options_.text_variance_weight)}};
}

void Ape::do_fit(const SupportFeatures& support, const TextClassifier& classifier) {
  const auto dim = embed_dim();
  if (options_.dimensions > dim) {
    throw ConfigError(
        fmt::format("[ape] dimensions must be at most {}, the features' width, but is {}", dim, options_.dimensions));
  }
  const auto num_kept = options_.dimensions > 0 ? options_.dimensions : (dim + 1) / 2;
  const auto order = criterion(support, classifier.weights, options_).argsort(/*stable=*/true, 0, /*descending=*/true);
  dimensions_ = std::get<0>(order.slice(0, 0, num_kept).sort());
  keys_ = reduced(support.keys, dimensions_);
  divergences_ = label_divergences(keys_, support.labels, reduced(classifier.weights, dimensions_));
  offsets_ = support.offsets();
}

ScoreTerms Ape::terms(const QueryFeatures& tile, const ParameterValues& values) const {
  const auto affinity = reduced(tile.features, dimensions_).matmul(keys_.t());
  const auto weights = (divergences_ * values[kGamma]).exp().unsqueeze(0);
  return {zero_shot_logits(tile.features),
          {},
          detail::weighted_cache_scores(affinity, offsets_, values[kBeta], weights)[0]};
}

void Ape::sweep_terms(const QueryFeatures& tile,
                      const std::function<void(int64_t shape_point, const ScoreTerms&)>& visit) const {
  const auto own = parameters();
  const auto base = zero_shot_logits(tile.features);
  const auto affinity = reduced(tile.features, dimensions_).matmul(keys_.t());
  std::vector<torch::Tensor> weights;
  for (const double gamma : own[kGamma].grid) weights.push_back((divergences_ * gamma).exp());
  const auto all_weights = at::stack(weights);
  int64_t point = 0;
  for (const double beta : own[kBeta].grid) {
    const auto scores = detail::weighted_cache_scores(affinity, offsets_, beta, all_weights);
    for (const auto& inner : scores.unbind()) visit(point++, {base, {}, inner});
  }
}

std::vector<std::pair<std::string, torch::Tensor*>> Ape::fitted() {
  return {{"dimensions", &dimensions_}, {"keys", &keys_}, {"divergences", &divergences_}, {"offsets", &offsets_}};
}

void Ape::check_fitted() const {
  require_shape("dimensions", dimensions_, {dimensions_.numel()}, at::kLong);
  const bool is_inside = dimensions_.numel() > 0 && dimensions_.min().item<int64_t>() >= 0 &&
                         dimensions_.max().item<int64_t>() < embed_dim();
  if (!is_inside) throw CheckpointError(fmt::format("[ape] the saved dimensions must be in [0, {})", embed_dim()));
  require_shape("keys", keys_, {keys_.size(0), dimensions_.numel()});
  require_shape("divergences", divergences_, {keys_.size(0)});
  require_offsets(offsets_, keys_.size(0));
}

}  // namespace contrastive::adapt
