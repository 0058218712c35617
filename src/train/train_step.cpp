#include "train/train_step.h"

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
  return {.images = batch.images.narrow(0, begin, size), .tokens = batch.tokens.narrow(0, begin, size)};
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
  const auto loss = options_.accumulate > 1 ? accumulate(batch, seed) : at_once(batch, seed);
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
  return group_.rank() * batch.images.size(0);
}

/// Some rows of the step's batch, the first of them number `first`.
models::ClipOutput TrainStep::forward(const data::Batch& batch, uint64_t seed, int64_t first) {
  const auto device = model_->logit_scale.device();
  model_->visual->seed_step(seed, first);
  const auto images = data::normalize_images(batch.images, preprocess_.mean, preprocess_.std, device);
  const auto tokens = batch.tokens.to(device, /*non_blocking=*/true);
  const models::AutocastGuard autocast(device.type(), options_.bf16);
  return model_->forward(images, tokens);
}

/// Features of the whole batch without a graph, as leaves; buffers stay as they were.
models::ClipOutput TrainStep::forward_whole(const data::Batch& batch, uint64_t seed) {
  const auto rows = batch.images.size(0), part = rows / options_.accumulate;
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
  return {at::cat(images).requires_grad_(), at::cat(texts).requires_grad_(), model_->logit_scale.exp(),
          model_->logit_bias};
}

loss::ContrastiveLossOutput TrainStep::accumulate(const data::Batch& batch, uint64_t seed) {
  const auto rows = batch.images.size(0), part = rows / options_.accumulate;
  TORCH_CHECK(rows % options_.accumulate == 0, "[train step] ", rows, " rows can't be forwarded in ",
              options_.accumulate, " equal parts");
  const auto whole = forward_whole(batch, seed);
  const auto loss = loss::model_loss(whole, group_);
  loss.loss.backward();  // the logit scale and bias get all of theirs here
  for (int64_t begin = 0; begin < rows; begin += part) {
    const auto output = forward(rows_of(batch, begin, part), seed, first_row(batch) + begin);
    if (begin + part == rows) reducer_.arm({"logit_scale", "logit_bias"});
    torch::autograd::backward(
        {output.image_features, output.text_features},
        {whole.image_features.grad().narrow(0, begin, part), whole.text_features.grad().narrow(0, begin, part)});
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
