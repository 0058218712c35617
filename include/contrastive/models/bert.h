#pragma once

#include <string>
#include <vector>

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/models/layers.h"
#include "contrastive/models/model_config.h"
#include "contrastive/models/text_tower.h"
#include "contrastive/models/text_transformer.h"
#include "contrastive/models/transformer.h"

namespace contrastive::models {

/// Post-LN block: x = LN(x + attention(x)); x = LN(x + mlp(x)). Letters: B batch, T tokens, D width.
class CONTRASTIVE_API BertLayerImpl : public torch::nn::Module {
 public:
  BertLayerImpl(const TextConfig& config, torch::Device device);

  /// Shapes: x [B, T, D], hidden [B, T] bool (tokens that are not attended to) or undefined, to [B, T, D].
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& hidden) const;

  /// The first row of forward(x, hidden) of every sample, computed without the others. Shapes: to [B, D].
  torch::Tensor forward_first(const torch::Tensor& x, const torch::Tensor& hidden) const;

  void reset_parameters(at::Generator& generator);

  Linear query{nullptr};                    ///< attention.self.query
  Linear key{nullptr};                      ///< attention.self.key
  Linear value{nullptr};                    ///< attention.self.value
  Linear attention_dense{nullptr};          ///< attention.output.dense
  LayerNorm attention_layer_norm{nullptr};  ///< attention.output.LayerNorm
  Linear intermediate_dense{nullptr};       ///< intermediate.dense
  Linear output_dense{nullptr};             ///< output.dense
  LayerNorm output_layer_norm{nullptr};     ///< output.LayerNorm

 private:
  torch::Tensor finish(const torch::Tensor& x, const torch::Tensor& attended) const;

  int64_t heads_;
  Activation activation_;
};
TORCH_MODULE(BertLayer);

/// BERT's encoder, read at the first position ([CLS]) of its last layer, without its pooler; then a projection if the
/// config asks for one. All tokens are of the first segment, padding is not attended to. Of a batch in CPU memory the
/// padding at the end that all rows have is cut off: the same features, less work. Tensors are registered under the
/// names of open_clip's checkpoints of such towers (`transformer.encoder.layer.0.attention.self.query.weight`,
/// `proj.weight`). Source: Devlin et al. 2019, arXiv 1810.04805; transformers' BertModel.
class CONTRASTIVE_API BertImpl : public TextTowerImpl {
 public:
  BertImpl(const TextConfig& config, int64_t embed_dim, torch::Device device);

  torch::Tensor forward_features(const torch::Tensor& tokens) override;
  torch::Tensor project(const torch::Tensor& features) const override;
  bool has_head() const override { return !proj.is_empty(); }
  int64_t num_layer_groups() const override;
  int64_t layer_group(const std::string& name) const override;
  void reset_parameters(at::Generator& generator) override;
  void checkpoint_activations(bool on) override { checkpoint_ = on; }

  TokenEmbedding word_embeddings{nullptr};        ///< transformer.embeddings.word_embeddings
  TokenEmbedding position_embeddings{nullptr};    ///< transformer.embeddings.position_embeddings
  TokenEmbedding token_type_embeddings{nullptr};  ///< transformer.embeddings.token_type_embeddings
  LayerNorm embeddings_layer_norm{nullptr};       ///< transformer.embeddings.LayerNorm
  std::vector<BertLayer> layers;                  ///< transformer.encoder.layer.N
  Linear proj{nullptr};                           ///< proj; empty without a projection

 private:
  torch::Tensor embed(const torch::Tensor& ids) const;

  bool checkpoint_ = false;
};
TORCH_MODULE(Bert);

}  // namespace contrastive::models
