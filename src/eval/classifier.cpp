#include "contrastive/eval/classifier.h"

#include <utility>

#include <ATen/ATen.h>
#include <torch/utils.h>

#include "contrastive/core/error.h"
#include "contrastive/eval/search.h"
#include "contrastive/eval/zero_shot.h"
#include "contrastive/models/precision.h"
#include "contrastive/text/prompts.h"

namespace contrastive::eval {
namespace {

torch::Tensor class_embeddings(const Encoder& encoder, const std::vector<std::string>& class_names,
                               std::span<const std::string> templates) {
  if (class_names.empty()) throw DataError("[zero_shot_classifier] there are no class names");
  if (templates.empty()) throw DataError("[zero_shot_classifier] there are no templates");
  std::vector<std::string> prompts;
  prompts.reserve(class_names.size() * templates.size());
  for (const auto& name : class_names) {
    for (const auto& prompt_template : templates) prompts.push_back(text::fill_template(prompt_template, name));
  }
  const auto features = encoder.unnormalized().encode_texts(prompts);  // [C T, E]
  return average_prompts(features.view({static_cast<int64_t>(class_names.size()), -1, features.size(1)}));
}

}  // namespace

ZeroShotClassifier::ZeroShotClassifier(const Encoder& encoder, std::vector<std::string> class_names,
                                       std::span<const std::string> templates)
    : class_names_(std::move(class_names)),
      weights_(class_embeddings(encoder, class_names_, templates)),
      logit_scale_(encoder.logit_scale()),
      logit_bias_(encoder.logit_bias()) {}

ZeroShotClassifier::ZeroShotClassifier(std::vector<std::string> class_names, torch::Tensor weights, double logit_scale,
                                       std::optional<double> logit_bias)
    : class_names_(std::move(class_names)),
      weights_(std::move(weights)),
      logit_scale_(logit_scale),
      logit_bias_(logit_bias) {
  TORCH_CHECK(weights_.dim() == 2 && weights_.size(0) == static_cast<int64_t>(class_names_.size()),
              "[zero_shot_classifier] weights must be [C, E] with C = ", class_names_.size(), ", but are ",
              weights_.sizes());
}

torch::Tensor ZeroShotClassifier::logits(const torch::Tensor& features) const {
  TORCH_CHECK(features.dim() == 2 && features.size(1) == weights_.size(1),
              "[zero_shot_classifier] features must be [N, E] with E = ", weights_.size(1), ", but are ",
              features.sizes());
  const torch::NoGradGuard no_grad;
  const models::AutocastGuard full_precision(features.device().type(), false);
  const auto x = features.to(at::kFloat);
  const auto cosines = x.matmul(weights_.to(x.options()).t());  // [N, C]
  return cosines * logit_scale_ + logit_bias_.value_or(0.0);
}

torch::Tensor ZeroShotClassifier::probabilities(const torch::Tensor& features) const {
  const torch::NoGradGuard no_grad;
  return logit_bias_ ? logits(features).sigmoid() : logits(features).softmax(1);
}

std::vector<std::vector<Prediction>> ZeroShotClassifier::classify(const torch::Tensor& features, int64_t k) const {
  const auto all = probabilities(features);
  const auto best = search(features, weights_, k);
  const auto labels = best.indices.cpu();
  const auto chosen = all.gather(1, best.indices).cpu();  // [N, k]
  std::vector<std::vector<Prediction>> predictions(static_cast<size_t>(labels.size(0)));
  for (int64_t row = 0; row < labels.size(0); ++row) {
    for (int64_t rank = 0; rank < labels.size(1); ++rank) {
      const auto label = labels[row][rank].item<int64_t>();
      predictions[static_cast<size_t>(row)].push_back(
          {label, class_names_[static_cast<size_t>(label)], chosen[row][rank].item<double>()});
    }
  }
  return predictions;
}

}  // namespace contrastive::eval
