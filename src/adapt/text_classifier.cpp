#include "contrastive/adapt/text_classifier.h"

#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/eval/text_pass.h"

namespace contrastive::adapt {
namespace {

torch::Tensor normalized(const torch::Tensor& rows) {
  return rows / rows.norm(2, -1, /*keepdim=*/true);
}

}  // namespace

torch::Tensor TextClassifier::logits(const torch::Tensor& features) const {
  return features.matmul(weights.t()) * scale;
}

TextClassifier TextClassifier::to(at::ScalarType dtype) const {
  auto copy = *this;
  copy.weights = weights.to(dtype);
  if (prompts.defined()) copy.prompts = prompts.to(dtype);
  return copy;
}

TextClassifier make_text_classifier(const torch::Tensor& prompts, const torch::Tensor& prompt_class,
                                    std::vector<std::string> class_names, PromptPooling pooling) {
  const auto num_classes = static_cast<int64_t>(class_names.size());
  TORCH_CHECK(prompts.dim() == 2 && prompt_class.dim() == 1 && prompt_class.scalar_type() == at::kLong &&
                  prompt_class.size(0) == prompts.size(0) && prompts.size(0) > 0,
              "[text_classifier] prompts must be [P, D] and prompt_class [P] int64 with P >= 1, but are ",
              prompts.sizes(), " and ", prompt_class.sizes());
  const auto owner = prompt_class.cpu();
  TORCH_CHECK(
      owner.diff().ge(0).all().item<bool>() && owner[0].item<int64_t>() >= 0 && owner[-1].item<int64_t>() < num_classes,
      "[text_classifier] prompt_class must rise within [0, ", num_classes, ")");
  const auto counts = at::bincount(owner, {}, num_classes);
  if (const auto empty = counts.eq(0).nonzero(); empty.numel() > 0) {
    throw DataError(fmt::format("[text_classifier] class \"{}\" has no prompt",
                                class_names[static_cast<size_t>(empty[0].item<int64_t>())]));
  }
  TextClassifier result;
  result.prompts = normalized(prompts);
  if (!result.prompts.isfinite().all().item<bool>()) {
    throw DataError("[text_classifier] the prompts' embeddings must be finite and not zero");
  }
  result.prompt_class = owner;
  result.class_names = std::move(class_names);
  result.pooling = pooling;
  const auto device = prompts.device();
  auto means = at::zeros({num_classes, prompts.size(1)}, result.prompts.options());
  means.index_add_(0, owner.to(device), result.prompts);
  means /= counts.to(device).unsqueeze(1);
  result.weights = pooling == PromptPooling::mean_direction ? normalized(means) : means;
  return result;
}

TextClassifier encode_text_classifier(models::ClipModel& model, const text::Tokenizer& tokenizer,
                                      const eval::ClassPrompts& prompts, std::vector<std::string> class_names,
                                      PromptPooling pooling, bool bf16, const distributed::ProcessGroup& group) {
  TORCH_CHECK(prompts.prompts.size() == class_names.size(), "[text_classifier] there are prompts of ",
              prompts.prompts.size(), " classes and ", class_names.size(), " class names");
  std::vector<std::string> texts;
  std::vector<int64_t> owner;
  for (size_t label = 0; label < class_names.size(); ++label) {
    texts.insert(texts.end(), prompts.prompts[label].begin(), prompts.prompts[label].end());
    owner.resize(texts.size(), static_cast<int64_t>(label));
  }
  std::vector<torch::Tensor> parts;
  eval::encode_texts(model, tokenizer, texts, {.bf16 = bf16}, group,
                     [&](int64_t, const torch::Tensor& features) { parts.push_back(features.clone()); });
  TORCH_CHECK(!parts.empty(), "[text_classifier] there is no prompt");
  auto result = make_text_classifier(at::cat(parts), at::tensor(owner, at::kLong), std::move(class_names), pooling);
  result.scale = model->logit_scale.detach().to(at::kDouble).exp().item<double>();
  result.prompt_name = prompts.name;
  result.prompt_sha256 = prompts.fingerprint();
  return result;
}

eval::ClassPrompts join_prompts(const eval::ClassPrompts& a, const eval::ClassPrompts& b) {
  TORCH_CHECK(a.num_classes() == b.num_classes(), "[join_prompts] there are ", a.num_classes(), " and ",
              b.num_classes(), " classes");
  auto joined = a;
  joined.name = a.name + "+" + b.name;
  for (size_t label = 0; label < b.prompts.size(); ++label) {
    joined.prompts[label].insert(joined.prompts[label].end(), b.prompts[label].begin(), b.prompts[label].end());
  }
  return joined;
}

}  // namespace contrastive::adapt
