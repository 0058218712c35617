#pragma once

#include <string>
#include <vector>

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/models/image_tower.h"
#include "contrastive/models/layers.h"

namespace contrastive::models {

/// Square convolution without bias whose weights are standardised: of every output channel the mean is taken off and
/// the result divided by sqrt(biased variance + eps), in fp32 at least. Padded by (k - 1) / 2 on all sides.
/// Shapes: x [B, in, H, W], weight [out, in, k, k].
/// Source: Qiao et al. 2019, arXiv 1903.10520.
class CONTRASTIVE_API StdConv2dImpl : public torch::nn::Module {
 public:
  StdConv2dImpl(int64_t in_channels, int64_t out_channels, int64_t kernel, int64_t stride, double eps,
                torch::Device device);

  torch::Tensor forward(const torch::Tensor& x) const;
  void reset_parameters(at::Generator& generator);

  torch::Tensor weight;

 private:
  int64_t stride_;
  double eps_;
};
TORCH_MODULE(StdConv2d);

/// Group normalisation (eps 1e-5) and ReLU. The result has the dtype of x; statistics are fp32 at least.
class CONTRASTIVE_API GroupNormReluImpl : public torch::nn::Module {
 public:
  GroupNormReluImpl(int64_t groups, int64_t channels, torch::Device device);

  /// Shapes: x [B, C, H, W] to the same.
  torch::Tensor forward(const torch::Tensor& x) const;
  void reset_parameters();

  torch::Tensor weight, bias;

 private:
  int64_t groups_;
};
TORCH_MODULE(GroupNormRelu);

/// Pre-activation bottleneck; its stride is that of the 3x3 convolution. The shortcut of a stage's first block is
/// projected after the first activation.
class CONTRASTIVE_API PreActBottleneckImpl : public torch::nn::Module {
 public:
  static constexpr int64_t kExpansion = 4;

  PreActBottleneckImpl(const VisionConfig& config, int64_t in_channels, int64_t out_channels, int64_t stride,
                       bool has_downsample, torch::Device device);

  torch::Tensor forward(const torch::Tensor& x) const;
  void reset_parameters(at::Generator& generator);

  StdConv2d downsample{nullptr};  ///< downsample.conv; empty where the shortcut is the identity
  GroupNormRelu norm1{nullptr};
  StdConv2d conv1{nullptr};
  GroupNormRelu norm2{nullptr};
  StdConv2d conv2{nullptr};
  GroupNormRelu norm3{nullptr};
  StdConv2d conv3{nullptr};
};
TORCH_MODULE(PreActBottleneck);

/// BiT's ResNetV2: weight-standardised convolutions, group norm, pre-activation; then the mean over all places, and a
/// projection if the config asks for one. Tensors are registered under the names of open_clip's checkpoints of timm's
/// towers (`trunk.stages.0.blocks.0.conv1.weight`, `head.proj.weight`). Layer groups: the stem, then one for each
/// stage. Source: Kolesnikov et al. 2020 (Big Transfer), arXiv 1912.11370; timm's resnetv2_*_bit. As in these the stem
/// has no activation before its max-pool, which is padded with zeros.
class CONTRASTIVE_API BitResNetImpl : public ImageTowerImpl {
 public:
  BitResNetImpl(const VisionConfig& config, int64_t embed_dim, torch::Device device);

  torch::Tensor forward_features(const torch::Tensor& images) override;
  torch::Tensor forward_places(const torch::Tensor& images) override;
  torch::Tensor project(const torch::Tensor& features) const override;
  bool has_head() const override { return !proj.is_empty(); }
  int64_t num_layer_groups() const override { return 1 + num_stages_; }
  int64_t layer_group(const std::string& name) const override;
  void reset_parameters(at::Generator& generator) override;
  void checkpoint_activations(bool on) override { checkpoint_ = on; }

  StdConv2d stem{nullptr};               ///< trunk.stem.conv
  std::vector<PreActBottleneck> blocks;  ///< trunk.stages.S.blocks.B, of all stages in order
  GroupNormRelu norm{nullptr};           ///< trunk.norm
  Linear proj{nullptr};                  ///< head.proj; empty without a projection

 private:
  torch::Tensor feature_map(const torch::Tensor& images);

  int64_t num_stages_;
  bool checkpoint_ = false;
};
TORCH_MODULE(BitResNet);

}  // namespace contrastive::models
