#pragma once

#include <string>

#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/models/attention_pool.h"
#include "contrastive/models/image_tower.h"
#include "contrastive/models/layers.h"
#include "contrastive/models/transformer.h"

namespace contrastive::models {

/// timm's VisionTransformer: patches with bias and positions, pre-LN blocks and a final norm; then the class token, the
/// mean over the patches or an attention pool, and a projection if the config asks for one. These are the towers of
/// AugReg, DINO, MoCo-v3, big_vision and SigLIP. Images may be larger than a whole number of patches: the rest is left
/// out. In checkpoints its tensors have timm's names (`trunk.blocks.0.attn.qkv.weight`): see checkpoint_name.
/// Source: Dosovitskiy et al. 2021; Steiner et al. 2022 (AugReg); Zhai et al. 2023 (SigLIP), arXiv 2303.15343;
/// timm 1.0.
class CONTRASTIVE_API TimmVisionTransformerImpl : public ImageTowerImpl {
 public:
  TimmVisionTransformerImpl(const VisionConfig& config, int64_t embed_dim, Activation activation, torch::Device device);

  torch::Tensor forward_features(const torch::Tensor& images) override;
  torch::Tensor forward_places(const torch::Tensor& images) override;
  torch::Tensor project(const torch::Tensor& features) const override;
  bool has_head() const override { return !head.is_empty(); }
  int64_t num_layer_groups() const override;
  int64_t layer_group(const std::string& name) const override;
  void reset_parameters(at::Generator& generator) override;
  void checkpoint_activations(bool on) override { transformer->checkpoint_activations(on); }
  std::string checkpoint_name(const std::string& name) const override;

  /// All tokens after the final norm (before it, if that comes after the pooling), the class token first.
  /// Shapes: images [B, 3, H, W] to [B, T, D].
  torch::Tensor forward_tokens(const torch::Tensor& images);

  torch::Tensor class_embedding;       ///< [1, 1, D]; undefined without a class token
  torch::Tensor positional_embedding;  ///< [1, T, D], the class token first
  PatchEmbedding conv1{nullptr};
  LayerNorm ln_pre{nullptr};  ///< with pre_norm only
  Transformer transformer{nullptr};
  LayerNorm ln_post{nullptr};  ///< after the pooling if the config has final_ln_after_pool
  AttentionPoolLatent attn_pool{nullptr};
  Linear pre_logits{nullptr};
  Linear head{nullptr};

 private:
  torch::Tensor embed(const torch::Tensor& images) const;
  torch::Tensor pool(const torch::Tensor& tokens) const;
  bool is_pooled_at_class_token() const { return config_.pool_type == "tok"; }

  VisionConfig config_;
};
TORCH_MODULE(TimmVisionTransformer);

}  // namespace contrastive::models
