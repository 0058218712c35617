#include "contrastive/adapt/tip_adapter.h"

#include <fmt/format.h>

#include "contrastive/core/error.h"

#include "adapt/cache_scores.h"

namespace contrastive::adapt {
namespace {

constexpr double kFirst = 0.1;
constexpr int64_t kBetas = 200;
constexpr int64_t kAlphas = 20;

}  // namespace

TipAdapter::TipAdapter(const TipAdapterOptions& options) : options_(options) {
  for (const auto& [name, value] : {std::pair{"max_alpha", options.max_alpha}, {"max_beta", options.max_beta}}) {
    if (!(value > kFirst)) throw ConfigError(fmt::format("[tip-adapter] {} must be above 0.1, but is {}", name, value));
  }
  for (const auto& [name, value] : {std::pair{"alpha", options.alpha}, {"beta", options.beta}}) {
    if (!(value >= 0)) throw ConfigError(fmt::format("[tip-adapter] {} must be at least 0, but is {}", name, value));
  }
}

std::vector<Parameter> TipAdapter::parameters() const {
  return {{"beta", options_.beta, half_open_grid(kFirst, options_.max_beta, kBetas), ParameterRole::shape},
          {"alpha", options_.alpha, half_open_grid(kFirst, options_.max_alpha, kAlphas), ParameterRole::inner}};
}

std::map<std::string, std::string> TipAdapter::settings() const {
  return {{"max_alpha", fmt::format("{}", options_.max_alpha)},
          {"max_beta", fmt::format("{}", options_.max_beta)},
          {"alpha", fmt::format("{}", options_.alpha)},
          {"beta", fmt::format("{}", options_.beta)}};
}

void TipAdapter::do_fit(const SupportFeatures& support, const TextClassifier&) {
  keys_ = support.keys;
  offsets_ = support.offsets();
}

ScoreTerms TipAdapter::terms(const QueryFeatures& tile, const ParameterValues& values) const {
  const auto affinities = tile.features.matmul(keys_.t());  // [n, M]
  return {zero_shot_logits(tile.features), {}, detail::cache_scores(affinities, offsets_, values[0])};
}

void TipAdapter::sweep_terms(const QueryFeatures& tile,
                             const std::function<void(int64_t shape_point, const ScoreTerms&)>& visit) const {
  const auto base = zero_shot_logits(tile.features);
  const auto affinities = tile.features.matmul(keys_.t());
  detail::sweep_cache_scores(affinities, offsets_, parameters()[0].grid, [&](int64_t number, const auto& scores) {
    visit(number, {base, {}, scores});
  });
}

std::vector<std::pair<std::string, torch::Tensor*>> TipAdapter::fitted() {
  return {{"keys", &keys_}, {"offsets", &offsets_}};
}

void TipAdapter::check_fitted() const {
  require_shape("keys", keys_, {keys_.size(0), embed_dim()});
  require_offsets(offsets_, keys_.size(0));
}

}  // namespace contrastive::adapt
