#include "contrastive/adapt/tip_x.h"

#include <algorithm>
#include <limits>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"

#include "adapt/cache_scores.h"

namespace contrastive::adapt {
namespace {

constexpr int64_t kObservedKeys = 4096;
constexpr int64_t kObservedTile = 512;
/// Above it exp would lose what expm1 keeps, and might overflow.
constexpr double kSmallExponent = 10;

/// log(mean(exp(x))) over the classes, exact where x is small. Shapes: [n, C] to [n, 1].
torch::Tensor log_mean_exp(const torch::Tensor& x) {
  const auto plain = x.logsumexp(1, /*keepdim=*/true) - std::log(static_cast<double>(x.size(1)));
  const auto small = x.clamp_max(kSmallExponent).expm1_().mean(1, /*keepdim=*/true).log1p_();
  return at::where(std::get<0>(x.abs().max(1, /*keepdim=*/true)) < kSmallExponent, small, plain);
}

}  // namespace

TipX::TipX(const TipXOptions& options) : options_(options) {
  if (!(options.tau > 0)) throw ConfigError(fmt::format("[tip-x] tau must be above 0, but is {}", options.tau));
}

std::vector<Parameter> TipX::parameters() const {
  return {{"alpha", 0.1, half_open_grid(0.1, 50, 20), ParameterRole::outer},
          {"beta", 1, half_open_grid(1, 50, 200), ParameterRole::shape},
          {"gamma", 0.1, half_open_grid(0.1, 30, 50), ParameterRole::inner}};
}

std::map<std::string, std::string> TipX::settings() const {
  return {{"tau", fmt::format("{}", options_.tau)},
          {"psi", options_.psi == Psi::range ? "range" : "none"},
          {"aggregate", options_.aggregate == Aggregate::mean ? "mean" : "sum"}};
}

void TipX::do_fit(const SupportFeatures& support, const TextClassifier& classifier) {
  centred_ = classifier.weights - classifier.weights.mean(0, /*keepdim=*/true);
  keys_ = support.keys;
  offsets_ = support.offsets();
  std::vector<torch::Tensor> terms;
  for (const auto& part : keys_.split(kObservedTile)) terms.push_back(log_mean_exp(scaled_cosines(part)).squeeze(1));
  key_terms_ = at::cat(terms);
  class_keys_ = support.class_sums();
  class_terms_ =
      at::zeros({support.num_classes}, keys_.options()).index_add_(0, support.labels.to(keys_.device()), key_terms_);
  const auto stride = (keys_.size(0) + kObservedKeys - 1) / kObservedKeys;
  observe({keys_.slice(0, 0, keys_.size(0), stride), {}});
}

torch::Tensor TipX::scaled_cosines(const torch::Tensor& features) const {
  return features.matmul(centred_.t()) / options_.tau;  // [n, C]
}

TipX::Signature TipX::signature(const torch::Tensor& features) const {
  const auto cosines = scaled_cosines(features);
  const auto p = cosines.softmax(1);
  return {p.matmul(centred_), (p * cosines).sum(1, /*keepdim=*/true) - log_mean_exp(cosines)};
}

torch::Tensor TipX::divergences(const Signature& signature) const {
  const auto crossed = signature.text.matmul(keys_.t()) / options_.tau;  // [n, M]
  return (signature.entropy + key_terms_ - crossed).clamp_min_(0);
}

torch::Tensor TipX::divergences(const torch::Tensor& features) const {
  return divergences(signature(features));
}

void TipX::observe(const QueryFeatures& queries, const distributed::ProcessGroup& group) {
  if (options_.psi == Psi::none) {
    ranges_ = at::zeros({4}, at::kDouble);
    return;
  }
  constexpr auto kInfinity = std::numeric_limits<double>::infinity();
  double highest[] = {-kInfinity, -kInfinity, -kInfinity, -kInfinity};  // of -M, M, -A, A
  const auto see = [&highest](const torch::Tensor& values, int place) {
    highest[place] = std::max(highest[place], -values.min().item<double>());
    highest[place + 1] = std::max(highest[place + 1], values.max().item<double>());
  };
  const torch::NoGradGuard no_grad;
  for (int64_t begin = 0; begin < queries.size(); begin += kObservedTile) {
    const auto tile = queries.features.slice(0, begin, std::min(queries.size(), begin + kObservedTile));
    see(divergences(tile), 0);
    see(tile.matmul(keys_.t()), 2);
  }
  auto all = at::tensor(at::ArrayRef<double>(highest, 4), at::kDouble);
  group.all_reduce(all, distributed::ReduceOp::max);
  TORCH_CHECK(all.isfinite().all().item<bool>(), "[tip-x] there must be an image to take ranges from, all finite");
  ranges_ = all * at::tensor({-1.0, 1.0, -1.0, 1.0}, at::kDouble);
}

/// What each class's sums are multiplied by. [C]
torch::Tensor TipX::key_weights() const {
  const auto counts = offsets_.diff().to(keys_.options());
  if (options_.aggregate == Aggregate::sum) return at::ones_like(counts);
  return static_cast<double>(keys_.size(0)) / static_cast<double>(counts.size(0)) / counts;
}

/// (-psi(M)) L, with each class's weight. [n, C]
torch::Tensor TipX::divergence_term(const torch::Tensor& features) const {
  const auto [text, entropy] = signature(features);
  const auto counts = offsets_.diff().to(keys_.options());
  const auto sums = entropy * counts + class_terms_ - text.matmul(class_keys_.t()) / options_.tau;
  if (options_.psi == Psi::none) return -sums * key_weights();
  const auto* range = ranges_.const_data_ptr<double>();
  const auto width = range[1] - range[0];
  if (!(width > 0)) return at::zeros_like(sums);
  const auto slope = (range[3] - range[2]) / width;
  return -((sums - counts * range[0]) * slope + counts * range[2]) * key_weights();
}

ScoreTerms TipX::terms(const QueryFeatures& tile, const ParameterValues& values) const {
  const auto affinities = tile.features.matmul(keys_.t());  // [n, M]
  return {zero_shot_logits(tile.features), detail::cache_scores(affinities, offsets_, values[1]).mul_(key_weights()),
          divergence_term(tile.features)};
}

void TipX::sweep_terms(const QueryFeatures& tile,
                       const std::function<void(int64_t shape_point, const ScoreTerms&)>& visit) const {
  const auto base = zero_shot_logits(tile.features);
  const auto inner = divergence_term(tile.features);
  const auto weights = key_weights();
  const auto affinities = tile.features.matmul(keys_.t());
  detail::sweep_cache_scores(affinities, offsets_, parameters()[1].grid, [&](int64_t number, const auto& scores) {
    visit(number, {base, scores * weights, inner});
  });
}

std::vector<std::pair<std::string, torch::Tensor*>> TipX::fitted() {
  return {{"centred", &centred_},       {"keys", &keys_},
          {"offsets", &offsets_},       {"key_terms", &key_terms_},
          {"class_keys", &class_keys_}, {"class_terms", &class_terms_},
          {"ranges", &ranges_}};
}

void TipX::check_fitted() const {
  require_shape("keys", keys_, {keys_.size(0), embed_dim()});
  require_offsets(offsets_, keys_.size(0));
  require_shape("centred", centred_, {num_classes(), embed_dim()});
  require_shape("key_terms", key_terms_, {keys_.size(0)});
  require_shape("class_keys", class_keys_, {num_classes(), embed_dim()});
  require_shape("class_terms", class_terms_, {num_classes()});
  require_shape("ranges", ranges_, {4}, at::kDouble);
}

}  // namespace contrastive::adapt
