#include "contrastive/eval/zero_shot.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <torch/utils.h>

#include "contrastive/core/error.h"
#include "contrastive/data/evaluation_loader.h"
#include "contrastive/data/normalize.h"
#include "contrastive/models/precision.h"
#include "contrastive/text/prompts.h"

#include "eval/eval_mode.h"

namespace contrastive::eval {
namespace {

using detail::EvalMode;

torch::Device device_of(const models::ClipModel& model) {
  return model->logit_scale.device();
}

/// Rows of tokens, cut behind the longest where the model permits it. [N, T]
torch::Tensor tokenize(const std::vector<std::string>& prompts, const text::Tokenizer& tokenizer,
                       const models::TextConfig& config) {
  const auto context_length = config.context_length;
  const auto count = static_cast<int64_t>(prompts.size());
  auto rows = at::zeros({count, context_length}, at::kInt);
  int64_t longest = 0;
  for (int64_t i = 0; i < count; ++i) {
    auto* row = rows.data_ptr<int32_t>() + i * context_length;
    const std::span<int32_t> span(row, static_cast<size_t>(context_length));
    longest = std::max(longest, tokenizer.tokenize(prompts[static_cast<size_t>(i)], span));
  }
  return rows.narrow(1, 0, config.may_cut_padding() ? longest : context_length).to(at::kLong);
}

/// Features of prompts, in batches that the ranks take in turn. [N, E] fp32
torch::Tensor encode_prompts(models::ClipModel& model, const text::Tokenizer& tokenizer,
                             const std::vector<std::string>& prompts, const ZeroShotOptions& options,
                             const distributed::ProcessGroup& group) {
  const auto device = device_of(model);
  const auto num_prompts = static_cast<int64_t>(prompts.size());
  const auto round = options.batch_size * group.size();
  std::vector<torch::Tensor> features;
  for (int64_t begin = 0; begin < num_prompts; begin += round) {
    auto own = at::zeros({options.batch_size, model->config().embed_dim}, at::TensorOptions(device).dtype(at::kFloat));
    const auto own_begin = std::min(num_prompts, begin + group.rank() * options.batch_size);
    const auto own_end = std::min(num_prompts, own_begin + options.batch_size);
    if (own_begin < own_end) {
      const std::vector<std::string> batch(prompts.begin() + own_begin, prompts.begin() + own_end);
      const models::AutocastGuard autocast(device.type(), options.bf16);
      const auto tokens = tokenize(batch, tokenizer, model->config().text_cfg).to(device);
      own.narrow(0, 0, own_end - own_begin).copy_(model->encode_text(tokens));
    }
    features.push_back(group.all_gather(own).narrow(0, 0, std::min(round, num_prompts - begin)));
  }
  return at::cat(features);
}

/// Class names and templates as the options want them.
struct ClassifierTexts {
  std::vector<std::string> class_names;
  std::vector<std::string> templates;
};

ClassifierTexts classifier_texts(const data::ClassificationSet& set, const ZeroShotOptions& options) {
  ClassifierTexts texts{set.class_names, options.prompts.empty() ? set.templates : text::prompt_set(options.prompts)};
  if (!options.canonicalize) return texts;
  for (auto& name : texts.class_names) name = text::canonicalize_class_name(name);
  for (auto& prompt_template : texts.templates) prompt_template = text::canonicalize_template(prompt_template);
  return texts;
}

}  // namespace

torch::Tensor average_prompts(const torch::Tensor& prompt_features) {
  TORCH_CHECK(prompt_features.dim() == 3, "[average_prompts] prompt_features must be [C, T, E], but are ",
              prompt_features.sizes());
  const auto flat = models::l2_normalize(prompt_features.flatten(0, 1)).view_as(prompt_features);  // [C, T, E]
  return models::l2_normalize(flat.mean(1));                                                       // [C, E]
}

torch::Tensor build_classifier(models::ClipModel& model, const text::Tokenizer& tokenizer,
                               const std::vector<std::string>& class_names, const std::vector<std::string>& templates,
                               const ZeroShotOptions& options, const distributed::ProcessGroup& group) {
  const torch::NoGradGuard no_grad;
  const EvalMode eval_mode(model);
  std::vector<std::string> prompts;
  for (const auto& name : class_names) {
    for (const auto& prompt_template : templates) prompts.push_back(text::fill_template(prompt_template, name));
  }
  const auto all = encode_prompts(model, tokenizer, prompts, options, group);  // [C * T, E]
  return average_prompts(
      all.view({static_cast<int64_t>(class_names.size()), static_cast<int64_t>(templates.size()), all.size(1)}));
}

torch::Tensor set_classifier(models::ClipModel& model, const text::Tokenizer& tokenizer,
                             const data::ClassificationSet& set, const ZeroShotOptions& options,
                             const distributed::ProcessGroup& group) {
  const auto texts = classifier_texts(set, options);
  return build_classifier(model, tokenizer, texts.class_names, texts.templates, options, group);
}

ZeroShotMeter::ZeroShotMeter(int64_t num_classes)
    : class_samples_(at::zeros({num_classes}, at::kLong)),
      class_hits_(at::zeros({num_classes}, at::kLong)),
      class_top5_hits_(at::zeros({num_classes}, at::kLong)) {}

void ZeroShotMeter::add(const torch::Tensor& scores, const torch::Tensor& labels) {
  const auto own = scores.gather(1, labels.unsqueeze(1));  // [N, 1]
  const auto columns = at::arange(scores.size(1), scores.options().dtype(at::kLong)).unsqueeze(0);
  // Counted from what the right class beats: a score that is not a number beats nothing and is beaten by nothing.
  const auto beaten = scores.lt(own).logical_or(scores.eq(own).logical_and(columns.ge(labels.unsqueeze(1))));
  const auto ranks = beaten.logical_not().sum(1).cpu();  // [N] classes at or above the right one
  const auto classes = labels.cpu();
  class_samples_.index_add_(0, classes, at::ones_like(classes));
  class_hits_.index_add_(0, classes, ranks.lt(1).to(at::kLong));
  class_top5_hits_.index_add_(0, classes, ranks.lt(5).to(at::kLong));
}

void ZeroShotMeter::add_ranks(const distributed::ProcessGroup& group) {
  for (auto* counts : {&class_samples_, &class_hits_, &class_top5_hits_}) group.all_reduce(*counts);
}

ZeroShotMetrics ZeroShotMeter::metrics() const {
  ZeroShotMetrics result;
  result.num_samples = class_samples_.sum().item<int64_t>();
  if (result.num_samples == 0) return result;
  const auto total = static_cast<double>(result.num_samples);
  result.top1_accuracy = static_cast<double>(class_hits_.sum().item<int64_t>()) / total;
  result.top5_accuracy = static_cast<double>(class_top5_hits_.sum().item<int64_t>()) / total;
  const auto seen = class_samples_.gt(0);
  const auto recalls = class_hits_.to(at::kDouble).div(class_samples_).masked_select(seen);
  result.mean_per_class_recall = recalls.mean().item<double>();
  return result;
}

ZeroShotMetrics evaluate_zero_shot(models::ClipModel& model, const image::PreprocessSpec& preprocess,
                                   const text::Tokenizer& tokenizer, const data::ClassificationSet& set,
                                   const ZeroShotOptions& options, const distributed::ProcessGroup& group) {
  const torch::NoGradGuard no_grad;
  const EvalMode eval_mode(model);
  const auto device = device_of(model);
  const auto classifier = set_classifier(model, tokenizer, set, options, group);  // [C, E]
  data::EvaluationLoader loader(*set.source, preprocess, options.batch_size, options.workers, group.rank(),
                                group.size());
  ZeroShotMeter meter(classifier.size(0));
  while (const auto batch = loader.next()) {
    const auto images = data::normalize_images(batch->images, preprocess.mean, preprocess.std, device);
    const models::AutocastGuard autocast(device.type(), options.bf16);
    const auto features = models::l2_normalize(model->encode_image(images));  // [B, E] fp32
    const models::AutocastGuard full_precision(device.type(), false);
    meter.add(features.matmul(classifier.t()), batch->labels.to(device));
  }
  meter.add_ranks(group);
  return meter.metrics();
}

}  // namespace contrastive::eval
