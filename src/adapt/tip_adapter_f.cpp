#include "contrastive/adapt/tip_adapter_f.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/random.h"
#include "contrastive/optim/adamw.h"

#include "adapt/cache_scores.h"

namespace contrastive::adapt {
namespace {

/// Where searches begin.
constexpr double kFirst = 0.1;
constexpr double kBeta1 = 0.9;
constexpr double kBeta2 = 0.999;

template <typename Value>
void require(const char* option, Value value, bool valid, const char* range) {
  if (!valid) throw ConfigError(fmt::format("[tip-adapter-f] {} must be {}, but is {}", option, range, value));
}

bool is_positive(double value) {
  return std::isfinite(value) && value > 0;
}

/// The support's images in the order in which an epoch takes them. [M] int64
torch::Tensor epoch_order(int64_t seed, int64_t epoch, int64_t size) {
  const auto key = RandomStream(static_cast<uint64_t>(seed), RandomPurpose::few_shot, {epoch}).next();
  const Permutation permutation(key, size);
  std::vector<int64_t> order(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) order[static_cast<size_t>(i)] = permutation(i);
  return at::tensor(order, at::kLong);
}

}  // namespace

CacheLoss cache_loss(const SupportFeatures& cache, const torch::Tensor& features, const torch::Tensor& labels,
                     const torch::Tensor& zero_shot_logits, double alpha, double beta) {
  auto affinities = features.matmul(cache.keys.t());  // [B, M]
  const auto cached = detail::cache_scores(affinities, cache.offsets(), beta);
  const auto kernel = affinities.sub_(1).mul_(beta).exp_();
  const auto log_probabilities = (zero_shot_logits + cached * alpha).log_softmax(1);
  const auto targets = labels.to(features.device()).unsqueeze(1);
  CacheLoss result;
  result.loss = -log_probabilities.gather(1, targets).mean().item<double>();
  auto residual = log_probabilities.exp();
  residual.scatter_add_(1, targets, at::full_like(targets, -1, residual.options()));
  residual.mul_(alpha * beta / static_cast<double>(features.size(0)));
  result.gradient = kernel.mul_(residual.index_select(1, cache.labels.to(features.device()))).t().matmul(features);
  return result;
}

TipAdapterF::TipAdapterF(TipAdapterFOptions options) : options_(options) {
  require("epochs", options_.epochs, options_.epochs >= 0, "at least 0");
  require("batch_size", options_.batch_size, options_.batch_size >= 1, "at least 1");
  require("lr", options_.lr, is_positive(options_.lr), "above 0");
  require("eps", options_.eps, is_positive(options_.eps), "above 0");
  require("weight_decay", options_.weight_decay, options_.weight_decay == 0 || is_positive(options_.weight_decay),
          "at least 0");
  require("alpha", options_.alpha, is_positive(options_.alpha), "above 0");
  require("beta", options_.beta, is_positive(options_.beta), "above 0");
  require("max_alpha", options_.max_alpha, std::isfinite(options_.max_alpha) && options_.max_alpha > kFirst,
          "above 0.1");
  require("max_beta", options_.max_beta, std::isfinite(options_.max_beta) && options_.max_beta > kFirst, "above 0.1");
  require("seed", options_.seed, options_.seed >= 0, "at least 0");
}

std::vector<Parameter> TipAdapterF::parameters() const {
  return {{"beta", options_.beta, half_open_grid(kFirst, options_.max_beta, 200), ParameterRole::shape},
          {"alpha", options_.alpha, half_open_grid(kFirst, options_.max_alpha, 20), ParameterRole::inner}};
}

std::map<std::string, std::string> TipAdapterF::settings() const {
  return {{"epochs", fmt::format("{}", options_.epochs)},
          {"batch_size", fmt::format("{}", options_.batch_size)},
          {"lr", fmt::format("{}", options_.lr)},
          {"eps", fmt::format("{}", options_.eps)},
          {"weight_decay", fmt::format("{}", options_.weight_decay)},
          {"alpha", fmt::format("{}", options_.alpha)},
          {"beta", fmt::format("{}", options_.beta)},
          {"max_alpha", fmt::format("{}", options_.max_alpha)},
          {"max_beta", fmt::format("{}", options_.max_beta)},
          {"seed", fmt::format("{}", options_.seed)}};
}

void TipAdapterF::do_fit(const SupportFeatures& support, const TextClassifier&) {
  keys_ = support.keys.clone(at::MemoryFormat::Contiguous);
  offsets_ = support.offsets();
  const SupportFeatures cache{keys_, support.labels, support.num_classes, {}};
  optim::AdamW optimizer({{"keys", keys_}}, {.beta1 = kBeta1, .beta2 = kBeta2, .eps = options_.eps},
                         {{.decay = options_.weight_decay}});
  const auto batch_size = std::min(options_.batch_size, support.size());
  const auto num_batches = (support.size() + batch_size - 1) / batch_size;
  const auto num_steps = static_cast<double>(options_.epochs) * static_cast<double>(num_batches);
  int64_t step = 0;
  for (int64_t epoch = 0; epoch < options_.epochs; ++epoch) {
    const auto samples =
        support.views.defined() ? support.views.select(1, epoch % support.views.size(1)) : support.keys;
    for (const auto& batch : epoch_order(options_.seed, epoch, support.size()).split(batch_size)) {
      const auto features = samples.index_select(0, batch.to(samples.device()));
      keys_.mutable_grad() = cache_loss(cache, features, support.labels.index_select(0, batch),
                                        zero_shot_logits(features), options_.alpha, options_.beta)
                                 .gradient;
      const auto progress = static_cast<double>(step++) / num_steps;
      optimizer.step(options_.lr * (1 + std::cos(std::numbers::pi * progress)) / 2);
    }
  }
  optimizer.zero_grad();
  if (!keys_.isfinite().all().item<bool>()) {
    throw TrainingError(
        fmt::format("[tip-adapter-f] keys are no longer finite after {} steps at lr {}", step, options_.lr));
  }
}

ScoreTerms TipAdapterF::terms(const QueryFeatures& tile, const ParameterValues& values) const {
  const auto affinity = tile.features.matmul(keys_.t());
  return {zero_shot_logits(tile.features), {}, detail::cache_scores(affinity, offsets_, values[0])};
}

void TipAdapterF::sweep_terms(const QueryFeatures& tile,
                              const std::function<void(int64_t shape_point, const ScoreTerms&)>& visit) const {
  const auto base = zero_shot_logits(tile.features);
  const auto affinity = tile.features.matmul(keys_.t());
  detail::sweep_cache_scores(affinity, offsets_, parameters()[0].grid, [&](int64_t point, const torch::Tensor& scores) {
    visit(point, {base, {}, scores});
  });
}

std::vector<std::pair<std::string, torch::Tensor*>> TipAdapterF::fitted() {
  return {{"keys", &keys_}, {"offsets", &offsets_}};
}

void TipAdapterF::check_fitted() const {
  require_shape("keys", keys_, {keys_.size(0), embed_dim()});
  require_offsets(offsets_, keys_.size(0));
}

}  // namespace contrastive::adapt
