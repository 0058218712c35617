#pragma once

#include <string>
#include <vector>

#include <torch/nn/module.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/models/image_tower.h"
#include "contrastive/models/layers.h"

namespace contrastive::models {

/// Average pool, 1x1 convolution and BatchNorm of a shortcut; the checkpoint calls the latter two "0" and "1".
class CONTRASTIVE_API DownsampleImpl : public torch::nn::Module {
 public:
  DownsampleImpl(int64_t in_channels, int64_t out_channels, int64_t stride, torch::Device device);

  torch::Tensor forward(const torch::Tensor& x);
  void reset_parameters(at::Generator& generator);

  Conv2d conv{nullptr};
  BatchNorm2d bn{nullptr};

 private:
  int64_t stride_;
};
TORCH_MODULE(Downsample);

/// Residual bottleneck whose strides are average pools (anti-aliased).
class CONTRASTIVE_API BottleneckImpl : public torch::nn::Module {
 public:
  static constexpr int64_t kExpansion = 4;

  BottleneckImpl(int64_t in_channels, int64_t planes, int64_t stride, torch::Device device);

  torch::Tensor forward(const torch::Tensor& x);
  void reset_parameters(at::Generator& generator);

  Conv2d conv1{nullptr};
  BatchNorm2d bn1{nullptr};
  Conv2d conv2{nullptr};
  BatchNorm2d bn2{nullptr};
  Conv2d conv3{nullptr};
  BatchNorm2d bn3{nullptr};
  Downsample downsample{nullptr};  ///< empty where the shortcut is the identity

 private:
  int64_t stride_;
};
TORCH_MODULE(Bottleneck);

/// Multi-head attention from the mean token to all places of a feature map; only that one query is computed.
/// Shapes: x [B, C, h, w] to [B, E].
class CONTRASTIVE_API AttentionPool2dImpl : public torch::nn::Module {
 public:
  AttentionPool2dImpl(int64_t side, int64_t channels, int64_t heads, int64_t embed_dim, torch::Device device);

  /// Before the projection: x [B, C, h, w] to [B, C].
  torch::Tensor forward_features(const torch::Tensor& x) const;

  /// The same, then what comes out with each place as the query: x [B, C, h, w] to [B, 1 + h w, C].
  torch::Tensor forward_places(const torch::Tensor& x) const;

  torch::Tensor forward(const torch::Tensor& x) const { return c_proj->forward(forward_features(x)); }
  void reset_parameters(at::Generator& generator);

  torch::Tensor positional_embedding;  ///< [1 + h w, C], the mean token first
  Linear k_proj{nullptr};
  Linear q_proj{nullptr};
  Linear v_proj{nullptr};
  Linear c_proj{nullptr};

 private:
  /// Shapes: x [B, C, h, w] to [B, 1 + h w, C].
  torch::Tensor tokens(const torch::Tensor& x) const;

  int64_t heads_;
};
TORCH_MODULE(AttentionPool2d);

/// CLIP's ResNet: three-convolution stem, average-pooled strides, attention pool. Member names are the checkpoint's.
/// Source: Radford et al. 2021, section 2.4, and the released model code.
class CONTRASTIVE_API ModifiedResNetImpl : public ImageTowerImpl {
 public:
  ModifiedResNetImpl(const VisionConfig& config, int64_t embed_dim, torch::Device device);

  torch::Tensor forward_features(const torch::Tensor& images) override;
  torch::Tensor forward_places(const torch::Tensor& images) override;
  torch::Tensor project(const torch::Tensor& features) const override { return attnpool->c_proj->forward(features); }
  bool has_head() const override { return true; }

  /// The stem, the four stages, the attention pool.
  int64_t num_layer_groups() const override { return 6; }
  int64_t layer_group(const std::string& name) const override;
  void reset_parameters(at::Generator& generator) override;
  void checkpoint_activations(bool on) override { checkpoint_ = on; }

  Conv2d conv1{nullptr};
  BatchNorm2d bn1{nullptr};
  Conv2d conv2{nullptr};
  BatchNorm2d bn2{nullptr};
  Conv2d conv3{nullptr};
  BatchNorm2d bn3{nullptr};
  torch::nn::ModuleList layer1, layer2, layer3, layer4;
  AttentionPool2d attnpool{nullptr};

 private:
  torch::Tensor stem(const torch::Tensor& images);
  torch::Tensor feature_map(const torch::Tensor& images);

  std::vector<Bottleneck> blocks_;  ///< of all stages, in order
  bool checkpoint_ = false;
};
TORCH_MODULE(ModifiedResNet);

}  // namespace contrastive::models
