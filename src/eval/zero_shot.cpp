#include "contrastive/eval/zero_shot.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <torch/utils.h>

#include "contrastive/core/error.h"
#include "contrastive/data/evaluation_loader.h"
#include "contrastive/data/normalize.h"
#include "contrastive/models/precision.h"
#include "contrastive/text/prompts.h"

namespace contrastive::eval {
namespace {

/// Eval mode for the life of the object.
class EvalMode {
 public:
  explicit EvalMode(models::ClipModel& model) : model_(model), was_training_(model->is_training()) { model_->eval(); }
  ~EvalMode() { model_->train(was_training_); }
  EvalMode(const EvalMode&) = delete;
  EvalMode& operator=(const EvalMode&) = delete;

 private:
  models::ClipModel& model_;
  bool was_training_;
};

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

}  // namespace

torch::Tensor average_prompts(const torch::Tensor& prompt_features) {
  TORCH_CHECK(prompt_features.dim() == 3, "[average_prompts] prompt_features must be [C, T, E], but are ",
              prompt_features.sizes());
  const auto flat = models::l2_normalize(prompt_features.flatten(0, 1)).view_as(prompt_features);  // [C, T, E]
  return models::l2_normalize(flat.mean(1));                                                       // [C, E]
}

torch::Tensor build_classifier(models::ClipModel& model, const text::Tokenizer& tokenizer,
                               const std::vector<std::string>& class_names, const std::vector<std::string>& templates,
                               const ZeroShotOptions& options) {
  const torch::NoGradGuard no_grad;
  const EvalMode eval_mode(model);
  const auto device = device_of(model);
  const auto num_templates = static_cast<int64_t>(templates.size());
  std::vector<std::string> prompts;
  for (const auto& name : class_names) {
    for (const auto& prompt_template : templates) prompts.push_back(text::fill_template(prompt_template, name));
  }
  std::vector<torch::Tensor> features;
  for (size_t begin = 0; begin < prompts.size(); begin += static_cast<size_t>(options.batch_size)) {
    const auto end = std::min(prompts.size(), begin + static_cast<size_t>(options.batch_size));
    const std::vector<std::string> chunk(prompts.begin() + static_cast<int64_t>(begin),
                                         prompts.begin() + static_cast<int64_t>(end));
    const models::AutocastGuard autocast(device.type(), options.bf16);
    features.push_back(
        model->encode_text(tokenize(chunk, tokenizer, model->config().text_cfg).to(device)).to(at::kFloat));
  }
  const auto all = at::cat(features);  // [C * T, E]
  return average_prompts(all.view({static_cast<int64_t>(class_names.size()), num_templates, all.size(1)}));
}

ZeroShotMeter::ZeroShotMeter(int64_t num_classes)
    : class_hits_(static_cast<size_t>(num_classes)), class_samples_(static_cast<size_t>(num_classes)) {}

void ZeroShotMeter::add(const torch::Tensor& scores, const torch::Tensor& labels) {
  const auto own = scores.gather(1, labels.unsqueeze(1));  // [N, 1]
  const auto columns = at::arange(scores.size(1), scores.options().dtype(at::kLong)).unsqueeze(0);
  // Counted from what the right class beats: a score that is not a number beats nothing and is beaten by nothing.
  const auto beaten = scores.lt(own).logical_or(scores.eq(own).logical_and(columns.ge(labels.unsqueeze(1))));
  const auto ranks = beaten.logical_not().sum(1).cpu();  // [N] classes at or above the right one
  const auto classes = labels.cpu();
  const auto* rank = ranks.const_data_ptr<int64_t>();
  const auto* label = classes.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < ranks.size(0); ++i) {
    const auto index = static_cast<size_t>(label[i]);
    ++class_samples_[index];
    class_hits_[index] += rank[i] < 1 ? 1 : 0;
    top1_hits_ += rank[i] < 1 ? 1 : 0;
    top5_hits_ += rank[i] < 5 ? 1 : 0;
  }
  num_samples_ += ranks.size(0);
}

ZeroShotMetrics ZeroShotMeter::metrics() const {
  ZeroShotMetrics result;
  if (num_samples_ == 0) return result;
  double recall_sum = 0;
  int64_t seen_classes = 0;
  for (size_t i = 0; i < class_samples_.size(); ++i) {
    if (class_samples_[i] == 0) continue;
    recall_sum += static_cast<double>(class_hits_[i]) / static_cast<double>(class_samples_[i]);
    ++seen_classes;
  }
  const auto total = static_cast<double>(num_samples_);
  result.top1_accuracy = static_cast<double>(top1_hits_) / total;
  result.top5_accuracy = static_cast<double>(top5_hits_) / total;
  result.mean_per_class_recall = recall_sum / static_cast<double>(seen_classes);
  result.num_samples = num_samples_;
  return result;
}

ZeroShotMetrics evaluate_zero_shot(models::ClipModel& model, const image::PreprocessSpec& preprocess,
                                   const text::Tokenizer& tokenizer, const data::ClassificationSet& set,
                                   const ZeroShotOptions& options) {
  const torch::NoGradGuard no_grad;
  const EvalMode eval_mode(model);
  const auto device = device_of(model);
  const auto classifier = build_classifier(model, tokenizer, set.class_names, set.templates, options);  // [C, E]
  data::EvaluationLoader loader(*set.source, preprocess, options.batch_size, options.workers);
  ZeroShotMeter meter(classifier.size(0));
  while (const auto batch = loader.next()) {
    const auto images = data::normalize_images(batch->images, preprocess.mean, preprocess.std, device);
    const models::AutocastGuard autocast(device.type(), options.bf16);
    const auto features = models::l2_normalize(model->encode_image(images));  // [B, E] fp32
    const models::AutocastGuard full_precision(device.type(), false);
    meter.add(features.matmul(classifier.t()), batch->labels.to(device));
  }
  return meter.metrics();
}

}  // namespace contrastive::eval
