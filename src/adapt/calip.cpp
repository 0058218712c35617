#include "contrastive/adapt/calip.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"

namespace contrastive::adapt {
namespace {

constexpr double kFirst = 0.001;
constexpr int64_t kGridSize = 200;
constexpr double kAttentionScale = 2;
/// Values that the attention of the images taken together may have.
constexpr int64_t kMaxValues = int64_t{1} << 23;

void require_end(const char* option, double value) {
  if (std::isfinite(value) && value > kFirst) return;
  throw ConfigError(
      fmt::format("[calip] {} must be above {}, where the search begins, but is {}", option, kFirst, value));
}

struct Attended {
  torch::Tensor by_text;   ///< f . F_t, [n, C]
  torch::Tensor by_image;  ///< F_v . W^T, [n, C]
};

Attended attend(const torch::Tensor& features, const torch::Tensor& tokens, const torch::Tensor& weights) {
  const auto attention = tokens.matmul(weights.t()) * kAttentionScale;                  // [n, T, C]
  const auto places = tokens.matmul(features.unsqueeze(2)).transpose(1, 2);             // [n, 1, T], f . F_s
  const auto by_text = places.matmul(attention.softmax(1)).squeeze(1);                  // [n, C]
  const auto texts = attention.softmax(2).matmul(weights);                              // [n, T, D]
  const auto pooled = texts.mean(at::IntArrayRef{1}) + texts.amax(at::IntArrayRef{1});  // [n, D]
  return {by_text, pooled.matmul(weights.t())};
}

}  // namespace

Calip::Calip(CalipOptions options) : options_(options) {
  require_end("largest_b2", options_.largest_b2);
  require_end("largest_b3", options_.largest_b3);
}

std::vector<Parameter> Calip::parameters() const {
  return {{"b2", 1.12, half_open_grid(kFirst, options_.largest_b2, kGridSize), ParameterRole::outer},
          {"b3", 0.02, half_open_grid(kFirst, options_.largest_b3, kGridSize), ParameterRole::inner}};
}

std::map<std::string, std::string> Calip::settings() const {
  return {{"largest_b2", fmt::format("{}", options_.largest_b2)},
          {"largest_b3", fmt::format("{}", options_.largest_b3)}};
}

void Calip::do_fit(const SupportFeatures&, const TextClassifier&) {}

ScoreTerms Calip::terms(const QueryFeatures& tile, const ParameterValues&) const {
  const auto num_places = tile.tokens.size(1);
  TORCH_CHECK(num_places >= 1, "[calip] images need spatial features, but there are 0 places in each");
  if (!tile.tokens.isfinite().all().item<bool>()) throw DataError("[calip] spatial features must be finite");
  const auto step = std::max<int64_t>(1, kMaxValues / (num_places * std::max(num_classes(), embed_dim())));
  const auto base = zero_shot_logits(tile.features);
  ScoreTerms result{base, at::empty_like(base), at::empty_like(base)};
  for (int64_t begin = 0; begin < tile.size(); begin += step) {
    const auto end = std::min(tile.size(), begin + step);
    const auto part = tile.rows(begin, end);
    const auto attended = attend(part.features, part.tokens, weights());
    result.outer.slice(0, begin, end).copy_(attended.by_text * scale());
    result.inner.slice(0, begin, end).copy_(attended.by_image * scale());
  }
  return result;
}

}  // namespace contrastive::adapt
