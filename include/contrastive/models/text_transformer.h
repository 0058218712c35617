#pragma once

#include <string>

#include <ATen/core/Generator.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/models/attention_pool.h"
#include "contrastive/models/layers.h"
#include "contrastive/models/model_config.h"
#include "contrastive/models/text_tower.h"
#include "contrastive/models/transformer.h"

namespace contrastive::models {

/// A table of token vectors, [vocabulary, D].
class CONTRASTIVE_API TokenEmbeddingImpl : public torch::nn::Module {
 public:
  TokenEmbeddingImpl(int64_t vocab_size, int64_t width, torch::Device device);

  /// Shapes: tokens [B, T] int64 to [B, T, D].
  torch::Tensor forward(const torch::Tensor& tokens) const;

  torch::Tensor weight;
};
TORCH_MODULE(TokenEmbedding);

/// CLIP's text tower. Member names are the checkpoint's.
/// Where tokens after the end token can't matter (causal, pooled by argmax or at eos_id) and the tokens are in CPU
/// memory, captions of similar length are computed together and cut at the longest of them: the same features, less
/// work. Source: Radford et al. 2021, section 2.4, and the released model code.
class CONTRASTIVE_API TextTransformerImpl : public TextTowerImpl {
 public:
  TextTransformerImpl(const TextConfig& config, int64_t embed_dim, Activation activation, torch::Device device);

  torch::Tensor forward_features(const torch::Tensor& tokens) override;
  torch::Tensor project(const torch::Tensor& features) const override;
  bool has_head() const override { return config().proj_type == "linear"; }
  int64_t num_layer_groups() const override;
  int64_t layer_group(const std::string& name) const override;
  void reset_parameters(at::Generator& generator) override;
  void checkpoint_activations(bool on) override {
    checkpoints_ = on;
    transformer->checkpoint_activations(on);
  }
  std::string checkpoint_name(const std::string& name) const override;

  torch::Tensor positional_embedding;  ///< [context_length, D]
  torch::Tensor text_projection;       ///< [D, E]; undefined with proj_type none or proj_bias
  Transformer transformer{nullptr};
  TokenEmbedding token_embedding{nullptr};
  LayerNorm ln_final{nullptr};
  AttentionPoolLatent attn_pool{nullptr};  ///< with pool_type map only
  Linear text_projection_linear{nullptr};  ///< registered as text_projection, with proj_bias only

 private:
  bool recomputes() const;
  torch::Tensor features_at(const torch::Tensor& tokens, const torch::Tensor& positions) const;
  torch::Tensor features_by_length(const torch::Tensor& tokens, const torch::Tensor& positions) const;
  torch::Tensor embed(const torch::Tensor& tokens) const;
  torch::Tensor pooled_positions(const torch::Tensor& tokens) const;

  bool checkpoints_ = false;
};
TORCH_MODULE(TextTransformer);

}  // namespace contrastive::models
