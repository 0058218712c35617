#pragma once

#include <string>

#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/models/image_tower.h"
#include "contrastive/models/layers.h"
#include "contrastive/models/transformer.h"

namespace contrastive::models {

/// CLIP's vision transformer. Member names are the checkpoint's.
/// Source: Radford et al. 2021, section 2.4; open_clip for the CLIPA switches (no ln_pre, mean pooling, late ln_post).
class CONTRASTIVE_API VisionTransformerImpl : public ImageTowerImpl {
 public:
  VisionTransformerImpl(const VisionConfig& config, int64_t embed_dim, Activation activation, torch::Device device);

  torch::Tensor forward_features(const torch::Tensor& images) override;
  torch::Tensor forward_places(const torch::Tensor& images) override;
  torch::Tensor project(const torch::Tensor& features) const override { return features.matmul(proj); }
  bool has_head() const override { return true; }
  int64_t num_layer_groups() const override;
  int64_t layer_group(const std::string& name) const override;
  void reset_parameters(at::Generator& generator) override;
  void checkpoint_activations(bool on) override { transformer->checkpoint_activations(on); }

  torch::Tensor class_embedding;       ///< [D]
  torch::Tensor positional_embedding;  ///< [1 + P, D], the class token first
  torch::Tensor proj;                  ///< [D, E]
  PatchEmbedding conv1{nullptr};
  LayerNorm ln_pre{nullptr};  ///< empty if the config has no_ln_pre
  Transformer transformer{nullptr};
  LayerNorm ln_post{nullptr};

 private:
  torch::Tensor embed(const torch::Tensor& images) const;
  torch::Tensor pool(const torch::Tensor& x) const;

  VisionConfig config_;
};
TORCH_MODULE(VisionTransformer);

}  // namespace contrastive::models
