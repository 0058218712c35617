#pragma once

#include <ATen/core/Generator.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/distributed/process_group.h"
#include "contrastive/models/precision.h"

/// The layers the towers are built from. They differ from torch::nn in two points: construction takes memory but draws
/// no numbers (so a tower on the meta device costs nothing), and reset_parameters draws from a given generator only.
/// Distributions are torch's defaults. Until reset_parameters or a load the values are undefined.
namespace contrastive::models {

/// y = x W^T + b. Shapes: x [..., in], weight [out, in], bias [out] or none.
class CONTRASTIVE_API LinearImpl : public torch::nn::Module {
 public:
  LinearImpl(int64_t in_features, int64_t out_features, torch::Device device, bool has_bias = true);

  torch::Tensor forward(const torch::Tensor& x) const;
  void reset_parameters(at::Generator& generator);

  /// The weight in the dtype of a pass, without a graph.
  torch::Tensor weight_as(torch::ScalarType dtype) const;

  ComputeCopy& copy() const { return copy_; }

  torch::Tensor weight, bias;

 private:
  mutable ComputeCopy copy_;
};
TORCH_MODULE(Linear);

/// Layer normalisation over the last dimension. The result has the dtype of x; statistics are fp32 at least.
class CONTRASTIVE_API LayerNormImpl : public torch::nn::Module {
 public:
  LayerNormImpl(int64_t width, torch::Device device, double eps = 1e-5);

  torch::Tensor forward(const torch::Tensor& x) const;
  void reset_parameters();

  double eps() const { return eps_; }

  torch::Tensor weight, bias;

 private:
  double eps_;
};
TORCH_MODULE(LayerNorm);

/// A learned factor for each channel (Touvron et al. 2021, "Going deeper with Image Transformers", LayerScale).
class CONTRASTIVE_API LayerScaleImpl : public torch::nn::Module {
 public:
  LayerScaleImpl(int64_t width, double initial_value, torch::Device device);

  torch::Tensor forward(const torch::Tensor& x) const;
  void reset_parameters();

  torch::Tensor gamma;  ///< [width]

 private:
  double initial_value_;
};
TORCH_MODULE(LayerScale);

/// Square 2-d convolution without bias. Shapes: x [B, in, H, W], weight [out, in, k, k].
class CONTRASTIVE_API Conv2dImpl : public torch::nn::Module {
 public:
  Conv2dImpl(int64_t in_channels, int64_t out_channels, int64_t kernel, int64_t stride, torch::Device device);

  torch::Tensor forward(const torch::Tensor& x) const;
  void reset_parameters(at::Generator& generator);

  torch::Tensor weight;

 private:
  int64_t stride_;
};
TORCH_MODULE(Conv2d);

/// Cuts images into patches and projects each: a convolution whose stride is its kernel, done as one matrix product.
/// Rows and columns beyond the last whole patch are left out.
/// Shapes: images [B, 3, H, W] to [B, (H / p)(W / p), width], row-major; weight [width, 3, p, p], bias [width] or none.
/// No gradient flows to the images.
class CONTRASTIVE_API PatchEmbeddingImpl : public torch::nn::Module {
 public:
  PatchEmbeddingImpl(int64_t patch_size, int64_t width, torch::Device device, bool has_bias = false);

  torch::Tensor forward(const torch::Tensor& images) const;
  void reset_parameters(at::Generator& generator);

  torch::Tensor weight, bias;
};
TORCH_MODULE(PatchEmbedding);

/// torch's BatchNorm2d: eps 1e-5, momentum 0.1, unbiased running variance. Statistics of a training step are those of
/// this process's batch, or of all ranks' of a group.
class CONTRASTIVE_API BatchNorm2dImpl : public torch::nn::Module {
 public:
  BatchNorm2dImpl(int64_t channels, torch::Device device);

  torch::Tensor forward(const torch::Tensor& x);

  /// relu(forward(x) + shortcut), in one pass over the numbers where possible. Shapes: shortcut as x; undefined: none.
  torch::Tensor forward_relu(const torch::Tensor& x, const torch::Tensor& shortcut = {});

  void reset_parameters();

  /// The ranks whose batches count as one; see ClipModelImpl::set_batch_norm_group.
  void set_group(const distributed::ProcessGroup& group) { group_ = group; }

  torch::Tensor weight, bias;
  torch::Tensor running_mean, running_var, num_batches_tracked;

 private:
  torch::Tensor evaluate(const torch::Tensor& x) const;

  distributed::ProcessGroup group_;
};
TORCH_MODULE(BatchNorm2d);

}  // namespace contrastive::models
