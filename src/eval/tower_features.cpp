#include "contrastive/eval/tower_features.h"

#include <algorithm>
#include <vector>

#include <ATen/ATen.h>
#include <torch/utils.h>

#include "contrastive/data/evaluation_loader.h"
#include "contrastive/data/normalize.h"
#include "contrastive/models/precision.h"

namespace contrastive::eval {

LabelledFeatures tower_features(models::ImageTowerImpl& tower, const image::PreprocessSpec& preprocess,
                                const data::SampleSource& source, const ZeroShotOptions& options,
                                const distributed::ProcessGroup& group) {
  const torch::NoGradGuard no_grad;
  const auto parameters = tower.parameters();
  const auto device = parameters.empty() ? torch::Device(torch::kCPU) : parameters.front().device();
  data::EvaluationLoader loader(source, preprocess, options.batch_size, options.workers, group.rank(), group.size());
  std::vector<torch::Tensor> features{at::empty({0, tower.feature_width()})};
  std::vector<torch::Tensor> labels{at::empty({0}, at::kLong)};
  while (const auto batch = loader.next()) {
    const auto images = data::normalize_images(batch->images, preprocess.mean, preprocess.std, device);
    const models::AutocastGuard autocast(device.type(), options.bf16);
    features.push_back(tower.forward_features(images).to(at::kFloat).cpu());
    labels.push_back(batch->labels);
  }
  return {at::cat(features), at::cat(labels)};
}

ClassificationMetrics evaluate_zero_shot(models::ClipModel& model, const LabelledFeatures& images,
                                         const text::Tokenizer& tokenizer, const data::ClassificationSet& set,
                                         const ZeroShotOptions& options, const distributed::ProcessGroup& group) {
  const torch::NoGradGuard no_grad;
  const auto device = model->logit_scale.device();
  const auto prompts = class_prompts(options.prompts, set, options.canonicalize);
  const auto classifier = build_classifier(model, tokenizer, prompts, options, group);
  ClassificationMeter meter(classifier.num_classes());
  for (int64_t begin = 0; begin < images.labels.size(0); begin += options.batch_size) {
    const auto rows = std::min(options.batch_size, images.labels.size(0) - begin);
    const models::AutocastGuard autocast(device.type(), options.bf16);
    const auto own = images.features.narrow(0, begin, rows).to(device);
    const auto features = models::l2_normalize(model->visual->project(own));  // [B, E] fp32
    const models::AutocastGuard full_precision(device.type(), false);
    meter.add(classifier.scores(features), images.labels.narrow(0, begin, rows));
  }
  meter.add_ranks(group);
  return meter.metrics();
}

}  // namespace contrastive::eval
