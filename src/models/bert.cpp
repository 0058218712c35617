#include "contrastive/models/bert.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "contrastive/models/precision.h"

#include "models/attention.h"
#include "models/checkpoint.h"
#include "models/layer_groups.h"
#include "models/named_scope.h"

namespace contrastive::models {
namespace {

constexpr double kWeightStd = 0.02;

void draw_linear(const Linear& linear, at::Generator& generator) {
  const at::NoGradGuard no_grad;
  linear->weight.normal_(0, kWeightStd, generator);
  linear->bias.zero_();
}

/// Columns up to the last that is not hidden in all rows; at least one. Shapes: hidden [B, T], in CPU memory.
int64_t longest_row(const torch::Tensor& hidden) {
  const auto seen = hidden.logical_not().any(0).nonzero();  // [columns, 1]
  return seen.numel() == 0 ? 1 : seen[-1].item<int64_t>() + 1;
}

}  // namespace

BertLayerImpl::BertLayerImpl(const TextConfig& config, torch::Device device)
    : heads_(config.heads), activation_(activation_of(/*quick_gelu=*/false, config.gelu_tanh)) {
  const auto width = config.width;
  const auto mlp_width = TransformerOptions{.width = width, .mlp_ratio = config.mlp_ratio}.mlp_width();
  const auto attention = detail::named_scope(*this, "attention");
  const auto self = detail::named_scope(*attention, "self");
  query = self->register_module("query", Linear(width, width, device));
  key = self->register_module("key", Linear(width, width, device));
  value = self->register_module("value", Linear(width, width, device));
  const auto attention_output = detail::named_scope(*attention, "output");
  attention_dense = attention_output->register_module("dense", Linear(width, width, device));
  attention_layer_norm = attention_output->register_module("LayerNorm", LayerNorm(width, device, config.norm_eps));
  intermediate_dense =
      detail::named_scope(*this, "intermediate")->register_module("dense", Linear(width, mlp_width, device));
  const auto output = detail::named_scope(*this, "output");
  output_dense = output->register_module("dense", Linear(mlp_width, width, device));
  output_layer_norm = output->register_module("LayerNorm", LayerNorm(width, device, config.norm_eps));
}

torch::Tensor BertLayerImpl::forward(const torch::Tensor& x, const torch::Tensor& hidden) const {
  const auto qkv = at::cat({query->forward(x), key->forward(x), value->forward(x)}, -1);  // [B, T, 3 D]
  return finish(x, detail::packed_attention(qkv, heads_, /*causal=*/false, hidden));
}

torch::Tensor BertLayerImpl::forward_first(const torch::Tensor& x, const torch::Tensor& hidden) const {
  const auto first = x.select(1, 0);  // [B, D]
  const auto attended = detail::single_query_attention(query->forward(first), key->forward(x), value->forward(x),
                                                       heads_, /*last_key=*/{}, hidden);
  return finish(first, attended);
}

/// What follows the attention. Shapes: x, attended [..., D] to the same.
torch::Tensor BertLayerImpl::finish(const torch::Tensor& x, const torch::Tensor& attended) const {
  const auto y = attention_layer_norm->forward(x + attention_dense->forward(attended));
  return output_layer_norm->forward(y + output_dense->forward(activate(activation_, intermediate_dense->forward(y))));
}

void BertLayerImpl::reset_parameters(at::Generator& generator) {
  for (auto* linear : {&query, &key, &value, &attention_dense, &intermediate_dense, &output_dense}) {
    draw_linear(*linear, generator);
  }
  attention_layer_norm->reset_parameters();
  output_layer_norm->reset_parameters();
}

BertImpl::BertImpl(const TextConfig& config, int64_t embed_dim, torch::Device device) : TextTowerImpl(config) {
  const auto width = config.width;
  const auto transformer = detail::named_scope(*this, "transformer");
  const auto embeddings = detail::named_scope(*transformer, "embeddings");
  const auto table = [&](const char* name, int64_t rows) {
    return embeddings->register_module(name, TokenEmbedding(rows, width, device));
  };
  word_embeddings = table("word_embeddings", config.vocab_size);
  position_embeddings = table("position_embeddings", config.max_positions);
  token_type_embeddings = table("token_type_embeddings", config.token_types);
  embeddings_layer_norm = embeddings->register_module("LayerNorm", LayerNorm(width, device, config.norm_eps));
  const auto scope = detail::named_scope(*detail::named_scope(*transformer, "encoder"), "layer");
  for (int64_t i = 0; i < config.layers; ++i) {
    layers.emplace_back(config, device);
    scope->register_module(std::to_string(i), layers.back());
  }
  if (config.proj_type == "linear") {
    proj = register_module("proj", Linear(width, embed_dim, device, config.proj_bias));
  }
}

torch::Tensor BertImpl::forward_features(const torch::Tensor& tokens) {
  check_tokens(tokens);
  auto ids = tokens;
  auto hidden = tokens.eq(config().pad_id);
  if (tokens.is_cpu() && tokens.size(0) > 0) {
    const auto length = longest_row(hidden);
    ids = ids.narrow(1, 0, length);
    hidden = hidden.narrow(1, 0, length);
    if (!hidden.any().item<bool>()) hidden.reset();
  }
  const auto device = word_embeddings->weight.device();
  if (hidden.defined()) hidden = hidden.to(device);

  auto x = embed(ids.to(device));  // [B, T, D]
  for (size_t i = 0; i + 1 < layers.size(); ++i) {
    const auto& layer = layers[i];
    x = detail::run_block(checkpoint_, *layer, x,
                          [layer, hidden](const torch::Tensor& y) { return layer->forward(y, hidden); });
  }
  const auto& last = layers.back();
  return detail::run_block(checkpoint_, *last, x, [last, hidden](const torch::Tensor& y) {
    return last->forward_first(y, hidden);
  });  // [B, D]
}

/// Shapes: ids [B, T] to [B, T, D].
torch::Tensor BertImpl::embed(const torch::Tensor& ids) const {
  const auto x = word_embeddings->forward(ids) + position_embeddings->weight.narrow(0, 0, ids.size(1)) +
                 token_type_embeddings->weight.select(0, 0);
  return embeddings_layer_norm->forward(x).to(compute_dtype(x));
}

torch::Tensor BertImpl::project(const torch::Tensor& features) const {
  return proj ? proj->forward(features) : features;
}

int64_t BertImpl::num_layer_groups() const {
  return detail::num_block_groups(static_cast<int64_t>(layers.size()));
}

int64_t BertImpl::layer_group(const std::string& name) const {
  if (name.starts_with("proj.")) return kHeadGroup;
  return detail::block_group(name, "transformer.encoder.layer.", /*is_last=*/false,
                             static_cast<int64_t>(layers.size()));
}

void BertImpl::reset_parameters(at::Generator& generator) {
  const at::NoGradGuard no_grad;
  for (auto* table : {&word_embeddings, &position_embeddings, &token_type_embeddings}) {
    (*table)->weight.normal_(0, kWeightStd, generator);
  }
  embeddings_layer_norm->reset_parameters();
  for (auto& layer : layers) layer->reset_parameters(generator);
  if (proj) proj->reset_parameters(generator);
}

}  // namespace contrastive::models
