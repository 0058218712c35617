#pragma once

#include <string>

#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/models/image_tower.h"
#include "contrastive/models/layers.h"
#include "contrastive/models/transformer.h"

namespace contrastive::models {

/// Attention pooling with one learned query, followed by a residual MLP ("MAP head").
/// Source: Zhai et al. 2022, "Scaling Vision Transformers", section 3.2; the released code of SigLIP.
class CONTRASTIVE_API AttentionPoolLatentImpl : public torch::nn::Module {
 public:
  AttentionPoolLatentImpl(const TransformerOptions& options, torch::Device device);

  /// Shapes: x [B, P, D] to [B, D].
  torch::Tensor forward(const torch::Tensor& x) const;

  void reset_parameters(at::Generator& generator);

  torch::Tensor latent;  ///< [1, 1, D]
  Linear q{nullptr};
  Linear kv{nullptr};  ///< [2 D, D]: rows of k, v
  Linear proj{nullptr};
  LayerNorm norm{nullptr};
  Mlp mlp{nullptr};

 private:
  int64_t heads_;
};
TORCH_MODULE(AttentionPoolLatent);

/// SigLIP's image tower: patches with bias and positions, pre-LN blocks, a final norm and a MAP head; no class token
/// and no projection, so the width is the embedding's. Images may be larger than a whole number of patches: the rest is
/// left out.
/// In checkpoints its tensors have timm's names (`trunk.blocks.0.attn.qkv.weight`): see checkpoint_name.
/// Source: Zhai et al. 2023 (SigLIP), arXiv 2303.15343; timm's vit_*_siglip_*.
class CONTRASTIVE_API SiglipVisionTransformerImpl : public ImageTowerImpl {
 public:
  SiglipVisionTransformerImpl(const VisionConfig& config, Activation activation, torch::Device device);

  torch::Tensor forward(const torch::Tensor& images) override;
  void reset_parameters(at::Generator& generator) override;
  void checkpoint_activations(bool on) override { transformer->checkpoint_activations(on); }
  std::string checkpoint_name(const std::string& name) const override;

  torch::Tensor positional_embedding;  ///< [1, P, D]
  PatchEmbedding conv1{nullptr};
  Transformer transformer{nullptr};
  LayerNorm ln_post{nullptr};
  AttentionPoolLatent attn_pool{nullptr};

 private:
  double patch_dropout_;
};
TORCH_MODULE(SiglipVisionTransformer);

}  // namespace contrastive::models
