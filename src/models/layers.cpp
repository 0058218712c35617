#include "contrastive/models/layers.h"

#include <cmath>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "contrastive/models/precision.h"

#include "models/batch_norm.h"
#include "models/checkpoint.h"

namespace contrastive::models {
namespace {

constexpr double kBatchNormEpsilon = 1e-5;
constexpr double kBatchNormMomentum = 0.1;

/// torch's default for linear layers and convolutions: kaiming-uniform with a = sqrt(5), which is +-1 / sqrt(fan_in).
void draw_uniform_by_fan_in(torch::Tensor& values, int64_t fan_in, at::Generator& generator) {
  const at::NoGradGuard no_grad;
  const double bound = 1.0 / std::sqrt(static_cast<double>(fan_in));
  values.uniform_(-bound, bound, generator);
}

void set_affine_to_identity(torch::Tensor& weight, torch::Tensor& bias) {
  const at::NoGradGuard no_grad;
  weight.fill_(1);
  bias.zero_();
}

detail::BatchNormStep start_step(BatchNorm2dImpl& layer, const distributed::ProcessGroup& group) {
  detail::BatchNormStep step{.momentum = kBatchNormMomentum, .epsilon = kBatchNormEpsilon, .group = group};
  if (!detail::is_rerunning()) {
    layer.num_batches_tracked.add_(1);
    step.running_mean = layer.running_mean;
    step.running_var = layer.running_var;
  }
  return step;
}

}  // namespace

LinearImpl::LinearImpl(int64_t in_features, int64_t out_features, torch::Device device, bool has_bias) {
  weight = register_parameter("weight", at::empty({out_features, in_features}, device));
  if (has_bias) bias = register_parameter("bias", at::empty({out_features}, device));
}

torch::Tensor LinearImpl::forward(const torch::Tensor& x) const {
  return at::linear(x, weight, bias);
}

torch::Tensor LinearImpl::weight_as(torch::ScalarType dtype) const {
  return copy_.of(weight, dtype);
}

void LinearImpl::reset_parameters(at::Generator& generator) {
  draw_uniform_by_fan_in(weight, weight.size(1), generator);
  if (bias.defined()) draw_uniform_by_fan_in(bias, weight.size(1), generator);
}

LayerNormImpl::LayerNormImpl(int64_t width, torch::Device device, double eps) : eps_(eps) {
  weight = register_parameter("weight", at::empty({width}, device));
  bias = register_parameter("bias", at::empty({width}, device));
}

torch::Tensor LayerNormImpl::forward(const torch::Tensor& x) const {
  // Autocast of CUDA computes this in fp32 and returns that; going back keeps the residual stream in one dtype.
  return at::layer_norm(x, weight.sizes(), weight, bias, eps_).to(x.scalar_type());
}

void LayerNormImpl::reset_parameters() {
  set_affine_to_identity(weight, bias);
}

LayerScaleImpl::LayerScaleImpl(int64_t width, double initial_value, torch::Device device)
    : initial_value_(initial_value) {
  gamma = register_parameter("gamma", at::empty({width}, device));
}

torch::Tensor LayerScaleImpl::forward(const torch::Tensor& x) const {
  return x * gamma.to(x.scalar_type());
}

void LayerScaleImpl::reset_parameters() {
  const at::NoGradGuard no_grad;
  gamma.fill_(initial_value_);
}

Conv2dImpl::Conv2dImpl(int64_t in_channels, int64_t out_channels, int64_t kernel, int64_t stride, torch::Device device)
    : stride_(stride) {
  weight = register_parameter("weight", at::empty({out_channels, in_channels, kernel, kernel}, device));
}

torch::Tensor Conv2dImpl::forward(const torch::Tensor& x) const {
  return at::conv2d(x, weight, {}, stride_, weight.size(2) / 2);
}

void Conv2dImpl::reset_parameters(at::Generator& generator) {
  draw_uniform_by_fan_in(weight, weight[0].numel(), generator);
}

PatchEmbeddingImpl::PatchEmbeddingImpl(int64_t patch_size, int64_t width, torch::Device device, bool has_bias) {
  weight = register_parameter("weight", at::empty({width, 3, patch_size, patch_size}, device));
  if (has_bias) bias = register_parameter("bias", at::empty({width}, device));
}

torch::Tensor PatchEmbeddingImpl::forward(const torch::Tensor& images) const {
  const auto batch = images.size(0), patch = weight.size(2);
  const auto rows = images.size(2) / patch, columns = images.size(3) / patch;
  const auto patches =
      images.detach()
          .narrow(2, 0, rows * patch)
          .narrow(3, 0, columns * patch)
          .unflatten(2, {rows, patch})
          .unflatten(4, {columns, patch})
          .permute({0, 2, 4, 1, 3, 5})
          .to(compute_dtype(weight), /*non_blocking=*/false, /*copy=*/true, at::MemoryFormat::Contiguous)
          .view({batch, rows * columns, 3 * patch * patch});
  return at::linear(patches, weight.flatten(1), bias);  // [B, P, D]
}

void PatchEmbeddingImpl::reset_parameters(at::Generator& generator) {
  draw_uniform_by_fan_in(weight, weight[0].numel(), generator);
  if (bias.defined()) draw_uniform_by_fan_in(bias, weight[0].numel(), generator);
}

BatchNorm2dImpl::BatchNorm2dImpl(int64_t channels, torch::Device device) {
  weight = register_parameter("weight", at::empty({channels}, device));
  bias = register_parameter("bias", at::empty({channels}, device));
  running_mean = register_buffer("running_mean", at::empty({channels}, device));
  running_var = register_buffer("running_var", at::empty({channels}, device));
  num_batches_tracked =
      register_buffer("num_batches_tracked", at::empty({}, at::TensorOptions(device).dtype(at::kLong)));
}

torch::Tensor BatchNorm2dImpl::evaluate(const torch::Tensor& x) const {
  return at::batch_norm(x, weight, bias, running_mean, running_var, /*training=*/false, kBatchNormMomentum,
                        kBatchNormEpsilon, /*cudnn_enabled=*/true);
}

torch::Tensor BatchNorm2dImpl::forward(const torch::Tensor& x) {
  return is_training() ? detail::train_batch_norm(x, weight, bias, start_step(*this, group_)) : evaluate(x);
}

torch::Tensor BatchNorm2dImpl::forward_relu(const torch::Tensor& x, const torch::Tensor& shortcut) {
  if (!is_training()) return detail::add_relu(evaluate(x), shortcut);
  return detail::train_batch_norm_relu(x, weight, bias, start_step(*this, group_), shortcut);
}

void BatchNorm2dImpl::reset_parameters() {
  set_affine_to_identity(weight, bias);
  running_mean.zero_();
  running_var.fill_(1);
  num_batches_tracked.zero_();
}

}  // namespace contrastive::models
