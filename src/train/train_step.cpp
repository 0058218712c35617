#include "train/train_step.h"

#include <cmath>

#include <ATen/ATen.h>
#include <torch/utils.h>

#include "contrastive/data/normalize.h"
#include "contrastive/loss/contrastive_loss.h"
#include "contrastive/loss/sigmoid_loss.h"
#include "contrastive/models/precision.h"
#include "contrastive/optim/gradients.h"

namespace contrastive::train::detail {

namespace {

loss::ContrastiveLossOutput loss_of(const models::ClipOutput& output) {
  if (!output.logit_bias.defined()) {
    return loss::contrastive_loss(output.image_features, output.text_features, output.logit_scale);
  }
  return loss::sigmoid_loss(output.image_features, output.text_features, output.logit_scale, output.logit_bias);
}

}  // namespace

bool StepResult::is_finite() const {
  return std::isfinite(loss) && std::isfinite(grad_norm);
}

TrainStep::TrainStep(models::ClipModel model, const image::PreprocessSpec& preprocess, bool bf16, bool restorable)
    : model_(std::move(model)),
      preprocess_(preprocess),
      bf16_(bf16),
      restorable_(restorable),
      parameters_(model_->named_trainable()) {}

StepResult TrainStep::forward_backward(const data::Batch& batch, uint64_t seed) {
  model_->visual->seed_step(seed);
  const auto device = model_->logit_scale.device();
  if (restorable_) {
    buffers_before_.clear();
    for (const auto& buffer : model_->buffers()) buffers_before_.push_back(buffer.clone());
  }
  const auto images = data::normalize_images(batch.images, preprocess_.mean, preprocess_.std, device);
  const auto tokens = batch.tokens.to(device, /*non_blocking=*/true);
  models::ClipOutput output;
  {
    const models::AutocastGuard autocast(device.type(), bf16_);
    output = model_->forward(images, tokens);
  }
  const auto loss = loss_of(output);
  loss.loss.backward();

  StepResult result;
  result.grad_norm_tensor = optim::global_norm(parameters_);
  result.loss = loss.loss.item<double>();
  result.accuracy = loss.accuracy.item<double>();
  result.logit_scale = output.logit_scale.item<double>();
  result.grad_norm = result.grad_norm_tensor.item<double>();
  return result;
}

void TrainStep::restore_buffers() {
  const torch::NoGradGuard no_grad;
  const auto buffers = model_->buffers();
  for (size_t i = 0; i < buffers.size(); ++i) buffers[i].copy_(buffers_before_[i]);
}

}  // namespace contrastive::train::detail
