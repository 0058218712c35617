#include "contrastive/adapt/timo.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"

#include "adapt/gaussian_classifier.h"

namespace contrastive::adapt {
namespace {

torch::Tensor normalized(const torch::Tensor& rows) {
  return rows / rows.norm(2, 1, /*keepdim=*/true).clamp_min(1e-12);
}

constexpr double kPublishedScale = 100;  // that alpha is a share of
constexpr int64_t kPromptsAtATime = 8192;

/// Throws: DataError unless there are embeddings of prompts of every class.
void check_prompts(const TextClassifier& classifier) {
  const auto& [prompts, owner] = std::tie(classifier.prompts, classifier.prompt_class);
  if (!prompts.defined() || !owner.defined() || prompts.size(0) == 0) {
    throw DataError("[timo] needs the embedding of every prompt, but the text classifier has none");
  }
  TORCH_CHECK(prompts.dim() == 2 && prompts.size(1) == classifier.weights.size(1) &&
                  prompts.scalar_type() == classifier.weights.scalar_type() && owner.dim() == 1 &&
                  owner.size(0) == prompts.size(0) && owner.scalar_type() == at::kLong,
              "[timo] prompts must be [P, ", classifier.weights.size(1), "] ", classifier.weights.toString(),
              " and prompt_class [P] int64, but are ", prompts.toString(), " ", prompts.sizes(), " and ",
              owner.sizes());
  const auto labels = owner.cpu();
  TORCH_CHECK(labels.min().item<int64_t>() >= 0 && labels.max().item<int64_t>() < classifier.num_classes(),
              "[timo] prompt_class must be in [0, ", classifier.num_classes(), ")");
  const auto empty = at::bincount(labels, {}, classifier.num_classes()).eq(0).nonzero();
  if (empty.numel() > 0) {
    throw DataError(fmt::format("[timo] every class needs a prompt, but class {} has none", empty[0].item<int64_t>()));
  }
}

/// The cosine of each prompt with its class's mean image. [P]
torch::Tensor matching_scores(const torch::Tensor& prompts, const torch::Tensor& owner,
                              const torch::Tensor& class_means) {
  auto scores = at::empty({prompts.size(0)}, prompts.options());
  for (int64_t begin = 0; begin < prompts.size(0); begin += kPromptsAtATime) {
    const auto end = std::min(prompts.size(0), begin + kPromptsAtATime);
    const auto means = class_means.index_select(0, owner.slice(0, begin, end));
    scores.slice(0, begin, end).copy_((prompts.slice(0, begin, end) * means).sum(1));
  }
  return scores;
}

/// The prompts of each class with the highest scores, at most `count`, as positions; of equal ones the first.
torch::Tensor best_prompts(const torch::Tensor& scores, const torch::Tensor& labels, int64_t count) {
  const auto by_score = scores.cpu().argsort(/*stable=*/true, 0, /*descending=*/true);
  const auto order = by_score.index_select(0, labels.index_select(0, by_score).argsort(/*stable=*/true));
  std::vector<int64_t> taken;
  int64_t label = -1;
  int64_t of_class = 0;
  for (int64_t i = 0; i < order.size(0); ++i) {
    const auto prompt = order[i].item<int64_t>();
    const auto own = labels[prompt].item<int64_t>();
    of_class = own == label ? of_class + 1 : 1;
    label = own;
    if (of_class <= count) taken.push_back(prompt);
  }
  return at::tensor(taken, at::kLong);
}

}  // namespace

Timo::Timo(TimoOptions options) : options_(options) {
  if (options_.prompts_per_class < 0) {
    throw ConfigError(fmt::format("[timo] prompts_per_class must be at least 1, or 0 for all, but is {}",
                                  options_.prompts_per_class));
  }
}

std::vector<Parameter> Timo::parameters() const {
  return {{"gamma", 50, half_open_grid(5, 105, 20), ParameterRole::shape},
          {"alpha", 100, {1e-4, 1e-3, 1e-2, 1e-1, 1, 10, 100, 1e3, 1e4}, ParameterRole::inner}};
}

std::map<std::string, std::string> Timo::settings() const {
  return {{"prompts_per_class", fmt::format("{}", options_.prompts_per_class)}};
}

void Timo::do_fit(const SupportFeatures& support, const TextClassifier& classifier) {
  check_prompts(classifier);
  const auto labels = classifier.prompt_class.cpu();
  prompts_ = normalized(classifier.prompts);
  prompt_class_ = labels.to(prompts_.device());
  const auto class_means = normalized(support.class_sums());
  const auto scores = matching_scores(prompts_, prompt_class_, class_means);
  const auto squares = at::zeros({num_classes()}, scores.options()).index_add_(0, prompt_class_, scores.square());
  matches_ = scores / squares.sqrt().clamp_min(1e-12).index_select(0, prompt_class_);

  auto samples = prompts_ * scores.unsqueeze(1);
  auto sample_labels = labels;
  if (options_.prompts_per_class > 0) {
    const auto taken = best_prompts(scores, labels, options_.prompts_per_class);
    samples = samples.index_select(0, taken.to(samples.device()));
    sample_labels = labels.index_select(0, taken);
  }
  const auto images = support.all_views();
  auto fit = detail::fit_gaussians({{samples, sample_labels}, {images.keys, images.labels}}, num_classes());
  gaussian_weights_ = std::move(fit.weights);
  gaussian_bias_ = std::move(fit.bias);
}

torch::Tensor Timo::text_weights(double gamma) const {
  const auto scores = matches_.to(at::kDouble) * gamma;
  const auto highest = at::zeros({num_classes()}, scores.options())
                           .scatter_reduce_(0, prompt_class_, scores, "amax", /*include_self=*/false);
  const auto exponentials = (scores - highest.index_select(0, prompt_class_)).exp();
  const auto sums = at::zeros({num_classes()}, exponentials.options()).index_add_(0, prompt_class_, exponentials);
  const auto shares = (exponentials / sums.index_select(0, prompt_class_)).to(prompts_.scalar_type());
  auto weights = at::zeros({num_classes(), embed_dim()}, prompts_.options());
  for (int64_t begin = 0; begin < shares.size(0); begin += kPromptsAtATime) {
    const auto end = std::min(shares.size(0), begin + kPromptsAtATime);
    const auto weighted = prompts_.slice(0, begin, end) * shares.slice(0, begin, end).unsqueeze(1);
    weights.index_add_(0, prompt_class_.slice(0, begin, end), weighted);
  }
  return normalized(weights);
}

ScoreTerms Timo::terms(const QueryFeatures& tile, const ParameterValues& values) const {
  return {at::addmm(gaussian_bias_, tile.features, gaussian_weights_.t()),
          {},
          tile.features.matmul(text_weights(values[0]).t()) * (scale() / kPublishedScale)};
}

std::vector<std::pair<std::string, torch::Tensor*>> Timo::fitted() {
  return {{"prompts", &prompts_},
          {"prompt_class", &prompt_class_},
          {"matches", &matches_},
          {"gaussian_weights", &gaussian_weights_},
          {"gaussian_bias", &gaussian_bias_}};
}

void Timo::check_fitted() const {
  const auto num_prompts = prompts_.size(0);
  require_shape("prompts", prompts_, {num_prompts, embed_dim()});
  require_shape("prompt_class", prompt_class_, {num_prompts}, at::kLong);
  const bool is_inside = num_prompts > 0 && prompt_class_.min().item<int64_t>() >= 0 &&
                         prompt_class_.max().item<int64_t>() < num_classes();
  if (!is_inside) throw CheckpointError(fmt::format("[timo] the saved prompt_class must be in [0, {})", num_classes()));
  require_shape("matches", matches_, {num_prompts});
  require_shape("gaussian_weights", gaussian_weights_, {num_classes(), embed_dim()});
  require_shape("gaussian_bias", gaussian_bias_, {num_classes()});
}

}  // namespace contrastive::adapt
