#include "contrastive/models/text_transformer.h"

#include <cmath>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "contrastive/models/precision.h"

#include "models/layer_groups.h"
#include "models/length_groups.h"
#include "models/timm_names.h"

namespace contrastive::models {

TokenEmbeddingImpl::TokenEmbeddingImpl(int64_t vocab_size, int64_t width, torch::Device device) {
  weight = register_parameter("weight", at::empty({vocab_size, width}, device));
}

torch::Tensor TokenEmbeddingImpl::forward(const torch::Tensor& tokens) const {
  return at::embedding(weight, tokens);
}

TextTransformerImpl::TextTransformerImpl(const TextConfig& config, int64_t embed_dim, Activation activation,
                                         torch::Device device)
    : TextTowerImpl(config) {
  const auto width = config.width;
  positional_embedding = register_parameter("positional_embedding", at::empty({config.context_length, width}, device));
  const bool is_matrix = config.proj_type == "linear" && !config.proj_bias;
  if (is_matrix) text_projection = register_parameter("text_projection", at::empty({width, embed_dim}, device));
  const TransformerOptions options{.width = width,
                                   .layers = config.layers,
                                   .heads = config.heads,
                                   .mlp_ratio = config.mlp_ratio,
                                   .activation = activation,
                                   .causal = !config.no_causal_mask,
                                   .norm_eps = config.norm_eps,
                                   .ls_init_value = config.ls_init_value};
  transformer = register_module("transformer", Transformer(options, device));
  token_embedding = register_module("token_embedding", TokenEmbedding(config.vocab_size, width, device));
  ln_final = register_module("ln_final", LayerNorm(width, device, config.norm_eps));
  if (config.pool_type == "map") attn_pool = register_module("attn_pool", AttentionPoolLatent(options, device));
  if (config.proj_type == "linear" && config.proj_bias) {
    text_projection_linear = register_module("text_projection", Linear(width, embed_dim, device));
  }
}

torch::Tensor TextTransformerImpl::forward_features(const torch::Tensor& tokens) {
  check_tokens(tokens);
  if (attn_pool) return attn_pool->forward(ln_final->forward(transformer->forward(embed(tokens))));
  const auto positions = pooled_positions(tokens);
  // Nothing before the end token sees what is behind it, and only the end token is read.
  const bool reads_an_end = config().pool_type == "argmax" || config().pool_type == "eos";
  if (tokens.is_cpu() && reads_an_end && !config().no_causal_mask && tokens.size(0) > 0) {
    return features_by_length(tokens, positions);
  }
  return features_at(tokens, positions);
}

/// Of each row, the features at its position. Shapes: tokens [B, T], positions [B] to [B, D].
torch::Tensor TextTransformerImpl::features_at(const torch::Tensor& tokens, const torch::Tensor& positions) const {
  const auto device_positions = positions.to(positional_embedding.device());
  return ln_final->forward(transformer->forward_pooled(embed(tokens), device_positions));
}

/// Whether blocks run again in the backward pass. A block that does may run once a step only: its gradients are added
/// up, and sent, as soon as it has run.
bool TextTransformerImpl::recomputes() const {
  return checkpoints_ && is_training() && at::GradMode::is_enabled();
}

/// The same, with rows of similar length together and cut at the longest of them.
torch::Tensor TextTransformerImpl::features_by_length(const torch::Tensor& tokens,
                                                      const torch::Tensor& positions) const {
  const auto groups = detail::group_by_length((positions + 1).to(at::kLong).contiguous());
  if (groups.size() == 1 || recomputes()) return features_at(tokens.narrow(1, 0, groups.front().length), positions);
  std::vector<torch::Tensor> rows, features;
  for (const auto& group : groups) {
    rows.push_back(at::tensor(group.rows, at::kLong));
    const auto part = tokens.index_select(0, rows.back()).narrow(1, 0, group.length);
    features.push_back(features_at(part, positions.index_select(0, rows.back())));
  }
  const auto place = at::cat(rows).argsort();  // of each row among the groups' rows
  return at::cat(features).index_select(0, place.to(positional_embedding.device()));
}

/// Shapes: tokens [B, T] to [B, T, D].
torch::Tensor TextTransformerImpl::embed(const torch::Tensor& tokens) const {
  const auto ids = tokens.to(positional_embedding.device());
  const auto x = token_embedding->forward(ids) + positional_embedding.narrow(0, 0, ids.size(1));
  return x.to(compute_dtype(x));
}

torch::Tensor TextTransformerImpl::project(const torch::Tensor& features) const {
  if (text_projection_linear) return text_projection_linear->forward(features);
  return text_projection.defined() ? features.matmul(text_projection) : features;
}

int64_t TextTransformerImpl::num_layer_groups() const {
  return detail::num_block_groups(config().layers);
}

int64_t TextTransformerImpl::layer_group(const std::string& name) const {
  if (name.starts_with("text_projection")) return kHeadGroup;
  const bool is_last = name.starts_with("ln_final.") || name.starts_with("attn_pool.");
  return detail::block_group(name, "transformer.resblocks.", is_last, config().layers);
}

std::string TextTransformerImpl::checkpoint_name(const std::string& name) const {
  return name.starts_with("attn_pool.") ? detail::to_timm_name(name) : name;
}

/// The position that is read, of each row. Shapes: tokens [B, T] to [B].
torch::Tensor TextTransformerImpl::pooled_positions(const torch::Tensor& tokens) const {
  if (config().pool_type == "argmax") return tokens.argmax(1);
  if (config().pool_type == "eos") return tokens.eq(*config().eos_id).to(at::kInt).argmax(1);
  return at::full({tokens.size(0)}, config().pool_type == "first" ? 0 : tokens.size(1) - 1, tokens.options());
}

void TextTransformerImpl::reset_parameters(at::Generator& generator) {
  const at::NoGradGuard no_grad;
  const auto width = static_cast<double>(config().width);
  const double attn_std = 1.0 / std::sqrt(width), fc_std = 1.0 / std::sqrt(2.0 * width);
  // Matrices that write into the residual stream are the smaller the more of them there are.
  const double residual_std = attn_std / std::sqrt(2.0 * static_cast<double>(config().layers));
  token_embedding->weight.normal_(0, 0.02, generator);
  positional_embedding.normal_(0, 0.01, generator);
  if (text_projection.defined()) text_projection.normal_(0, attn_std, generator);
  if (text_projection_linear) {
    text_projection_linear->weight.normal_(0, attn_std, generator);
    text_projection_linear->bias.zero_();
  }
  transformer->reset_parameters(generator);
  for (const auto& block : transformer->blocks()) {
    const auto draw = [&](const torch::Tensor& values, double std) { values.normal_(0, std, generator); };
    draw(block->attn->in_proj_weight, attn_std);
    draw(block->attn->out_proj->weight, residual_std);
    draw(block->mlp->c_fc->weight, fc_std);
    draw(block->mlp->c_proj->weight, residual_std);
  }
  ln_final->reset_parameters();
  if (attn_pool) attn_pool->reset_parameters(generator);
}

}  // namespace contrastive::models
