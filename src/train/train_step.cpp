#include "train/train_step.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/utils.h>

#include "contrastive/data/normalize.h"
#include "contrastive/loss/model_loss.h"
#include "contrastive/models/precision.h"
#include "contrastive/optim/gradients.h"

namespace contrastive::train::detail {
namespace {

data::Batch rows_of(const data::Batch& batch, int64_t begin, int64_t size) {
  const auto part = [&](const torch::Tensor& whole) {
    return whole.defined() ? whole.narrow(0, begin, size) : torch::Tensor();
  };
  return {.images = part(batch.images), .features = part(batch.features), .tokens = part(batch.tokens)};
}

bool has_trainable(const torch::nn::Module& tower) {
  const auto parameters = tower.parameters();
  return std::any_of(parameters.begin(), parameters.end(), [](const auto& each) { return each.requires_grad(); });
}

/// From the gradients of the whole batch's features on, for the rows of one part.
void backward_part(const models::ClipOutput& part, const models::ClipOutput& whole, int64_t begin, int64_t size) {
  std::vector<torch::Tensor> roots, gradients;
  const auto add = [&](const torch::Tensor& features, const torch::Tensor& all) {
    if (!all.requires_grad()) return;
    roots.push_back(features);
    gradients.push_back(all.grad().narrow(0, begin, size));
  };
  add(part.image_features, whole.image_features);
  add(part.text_features, whole.text_features);
  if (!roots.empty()) torch::autograd::backward(roots, gradients);
}

}  // namespace

bool StepResult::is_finite() const {
  return std::isfinite(loss) && std::isfinite(grad_norm);
}

TrainStep::TrainStep(models::ClipModel model, const image::PreprocessSpec& preprocess, const TrainStepOptions& options,
                     const distributed::ProcessGroup& group)
    : model_(std::move(model)),
      preprocess_(preprocess),
      options_(options),
      group_(group),
      parameters_(model_->named_trainable()),
      reducer_(parameters_, group, options.reducer) {}

StepResult TrainStep::forward_backward(const data::Batch& batch, uint64_t seed) {
  if (options_.restorable) buffers_before_ = copy_buffers();
  reducer_.start_step();
  auto known = batch;
  if (!known.features.defined() && model_->visual->features_are_locked()) {
    known = {.images = {}, .features = locked_features(batch.images), .tokens = batch.tokens};
  }
  const auto loss = options_.accumulate > 1 ? accumulate(known, seed) : at_once(known, seed);
  reducer_.finish();
  return result_of(loss);
}

loss::ContrastiveLossOutput TrainStep::at_once(const data::Batch& batch, uint64_t seed) {
  const auto loss = loss::model_loss(forward(batch, seed, first_row(batch)), group_);
  reducer_.arm();
  loss.loss.backward();
  return loss;
}

/// The place of this rank's first row in the step's batch.
int64_t TrainStep::first_row(const data::Batch& batch) const {
  return group_.rank() * batch.tokens.size(0);
}

torch::Tensor TrainStep::normalized(const torch::Tensor& images) const {
  return data::normalize_images(images, preprocess_.mean, preprocess_.std, model_->logit_scale.device());
}

/// Shapes: images [B, S, S, 3] uint8 to [B, W] fp32.
torch::Tensor TrainStep::locked_features(const torch::Tensor& images) {
  const torch::NoGradGuard no_grad;
  const auto rows = images.size(0), at_a_time = options_.locked_batch_size > 0 ? options_.locked_batch_size : rows;
  std::vector<torch::Tensor> features;
  for (int64_t begin = 0; begin < rows; begin += at_a_time) {
    const auto part = images.narrow(0, begin, std::min(at_a_time, rows - begin));
    const models::AutocastGuard autocast(model_->logit_scale.device().type(), options_.bf16);
    features.push_back(model_->visual->forward_features(normalized(part)).to(at::kFloat));
  }
  return at::cat(features);
}

/// Some rows of the step's batch, the first of them number `first`.
models::ClipOutput TrainStep::forward(const data::Batch& batch, uint64_t seed, int64_t first) {
  const auto device = model_->logit_scale.device();
  model_->visual->seed_step(seed, first);
  const auto tokens = batch.tokens.to(device, /*non_blocking=*/true);
  if (batch.features.defined()) {
    const models::AutocastGuard autocast(device.type(), options_.bf16);
    return model_->forward_features(batch.features.to(device, /*non_blocking=*/true), tokens);
  }
  const auto images = normalized(batch.images);
  const models::AutocastGuard autocast(device.type(), options_.bf16);
  return model_->forward(images, tokens);
}

/// Features of the whole batch without a graph, as leaves; buffers stay as they were.
models::ClipOutput TrainStep::forward_whole(const data::Batch& batch, uint64_t seed) {
  const auto rows = batch.tokens.size(0), part = rows / options_.accumulate;
  const auto buffers = copy_buffers();
  std::vector<torch::Tensor> images, texts;
  {
    const torch::NoGradGuard no_grad;
    for (int64_t begin = 0; begin < rows; begin += part) {
      const auto output = forward(rows_of(batch, begin, part), seed, first_row(batch) + begin);
      images.push_back(output.image_features);
      texts.push_back(output.text_features);
    }
  }
  set_buffers(buffers);
  const bool learns_images = has_trainable(*model_->visual), learns_texts = has_trainable(*model_->text);
  return {at::cat(images).requires_grad_(learns_images), at::cat(texts).requires_grad_(learns_texts),
          model_->logit_scale.exp(), model_->logit_bias};
}

loss::ContrastiveLossOutput TrainStep::accumulate(const data::Batch& batch, uint64_t seed) {
  const auto rows = batch.tokens.size(0), part = rows / options_.accumulate;
  TORCH_CHECK(rows % options_.accumulate == 0, "[train step] ", rows, " rows can't be forwarded in ",
              options_.accumulate, " equal parts");
  const auto whole = forward_whole(batch, seed);
  const auto loss = loss::model_loss(whole, group_);
  loss.loss.backward();  // the logit scale and bias get all of theirs here
  for (int64_t begin = 0; begin < rows; begin += part) {
    const auto output = forward(rows_of(batch, begin, part), seed, first_row(batch) + begin);
    if (begin + part == rows) reducer_.arm({"logit_scale", "logit_bias"});
    backward_part(output, whole, begin, part);
  }
  return loss;
}

StepResult TrainStep::result_of(const loss::ContrastiveLossOutput& loss) const {
  StepResult result;
  result.grad_norm_tensor = optim::global_norm(parameters_);
  result.loss = loss.loss.item<double>();
  result.accuracy = loss.accuracy.item<double>();
  result.logit_scale = model_->logit_scale.detach().exp().item<double>();
  result.grad_norm = result.grad_norm_tensor.item<double>();
  return result;
}

void TrainStep::restore_buffers() {
  set_buffers(buffers_before_);
}

std::vector<torch::Tensor> TrainStep::copy_buffers() const {
  std::vector<torch::Tensor> copies;
  for (const auto& buffer : model_->buffers()) copies.push_back(buffer.clone());
  return copies;
}

void TrainStep::set_buffers(const std::vector<torch::Tensor>& values) {
  const torch::NoGradGuard no_grad;
  const auto buffers = model_->buffers();
  for (size_t i = 0; i < buffers.size(); ++i) buffers[i].copy_(values[i]);
}

}  // namespace contrastive::train::detail
