#pragma once

#include <string>
#include <vector>

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/models/image_tower.h"
#include "contrastive/models/layers.h"
#include "contrastive/models/transformer.h"

namespace contrastive::models {

/// Two linear layers with an activation between them, by timm's names. Shapes: x [..., width] to the same.
class CONTRASTIVE_API TimmMlpImpl : public torch::nn::Module {
 public:
  TimmMlpImpl(int64_t width, int64_t hidden_width, Activation activation, torch::Device device);

  torch::Tensor forward(const torch::Tensor& x) const;
  void reset_parameters(at::Generator& generator);

  Linear fc1{nullptr};
  Linear fc2{nullptr};

 private:
  Activation activation_;
};
TORCH_MODULE(TimmMlp);

/// Pre-LN block: an MLP over the patches of each channel, then one over the channels of each patch.
class CONTRASTIVE_API MixerBlockImpl : public torch::nn::Module {
 public:
  MixerBlockImpl(const VisionConfig& config, Activation activation, torch::Device device);

  /// Shapes: x [B, P, D] to the same.
  torch::Tensor forward(const torch::Tensor& x) const;
  void reset_parameters(at::Generator& generator);

  LayerNorm norm1{nullptr};
  TimmMlp mlp_tokens{nullptr};
  LayerNorm norm2{nullptr};
  TimmMlp mlp_channels{nullptr};
};
TORCH_MODULE(MixerBlock);

/// MLP-Mixer: patches with bias, blocks, a final norm, the mean over the patches, and a projection if the config asks
/// for one. Tensors are registered under the names of open_clip's checkpoints of timm's towers
/// (`trunk.stem.proj.weight`, `head.proj.weight`). Source: Tolstikhin et al. 2021, arXiv 2105.01601; timm's mixer_*.
class CONTRASTIVE_API MlpMixerImpl : public ImageTowerImpl {
 public:
  MlpMixerImpl(const VisionConfig& config, int64_t embed_dim, Activation activation, torch::Device device);

  torch::Tensor forward_features(const torch::Tensor& images) override;
  torch::Tensor forward_places(const torch::Tensor& images) override;
  torch::Tensor project(const torch::Tensor& features) const override;
  bool has_head() const override { return !proj.is_empty(); }
  int64_t num_layer_groups() const override;
  int64_t layer_group(const std::string& name) const override;
  void reset_parameters(at::Generator& generator) override;
  void checkpoint_activations(bool on) override { checkpoint_ = on; }

  PatchEmbedding stem{nullptr};    ///< trunk.stem.proj
  std::vector<MixerBlock> blocks;  ///< trunk.blocks.N
  LayerNorm norm{nullptr};         ///< trunk.norm
  Linear proj{nullptr};            ///< head.proj; empty without a projection

 private:
  torch::Tensor forward_patches(const torch::Tensor& images);

  bool checkpoint_ = false;
};
TORCH_MODULE(MlpMixer);

}  // namespace contrastive::models
