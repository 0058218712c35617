#include "contrastive/models/timm_vision_transformer.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "models/layer_groups.h"
#include "models/timm_init.h"
#include "models/timm_names.h"

namespace contrastive::models {
namespace {

constexpr double kTokenStd = 1e-6;  // of the class token

}  // namespace

TimmVisionTransformerImpl::TimmVisionTransformerImpl(const VisionConfig& config, int64_t embed_dim,
                                                     Activation activation, torch::Device device)
    : ImageTowerImpl(config.image_size, config.output_width()), config_(config) {
  const auto width = config.width, grid = config.image_size / config.patch_size;
  const TransformerOptions options{.width = width,
                                   .layers = config.layers.front(),
                                   .heads = config.heads(),
                                   .mlp_ratio = config.mlp_ratio,
                                   .activation = activation,
                                   .causal = false,
                                   .norm_eps = config.norm_eps,
                                   .ls_init_value = config.ls_init_value};
  if (config.class_token) class_embedding = register_parameter("class_embedding", at::empty({1, 1, width}, device));
  const auto tokens = grid * grid + (config.class_token ? 1 : 0);
  positional_embedding = register_parameter("positional_embedding", at::empty({1, tokens, width}, device));
  conv1 = register_module("conv1", PatchEmbedding(config.patch_size, width, device, /*has_bias=*/true));
  if (config.pre_norm) ln_pre = register_module("ln_pre", LayerNorm(width, device, config.norm_eps));
  transformer = register_module("transformer", Transformer(options, device));
  ln_post = register_module("ln_post", LayerNorm(width, device, config.norm_eps));
  if (config.pool_type == "map") attn_pool = register_module("attn_pool", AttentionPoolLatent(options, device));
  if (config.pre_logits) pre_logits = register_module("pre_logits", Linear(width, width, device));
  if (config.has_projection()) head = register_module("head", Linear(width, embed_dim, device, config.proj_bias));
}

torch::Tensor TimmVisionTransformerImpl::forward_features(const torch::Tensor& images) {
  check_images(images);
  torch::Tensor features;
  if (is_pooled_at_class_token()) {
    features = ln_post->forward(transformer->forward_pooled(embed(images), {}));
  } else {
    const auto tokens = transformer->forward(embed(images));
    features = config_.final_ln_after_pool ? ln_post->forward(pool(tokens)) : pool(ln_post->forward(tokens));
  }
  return pre_logits ? pre_logits->forward(features).tanh() : features;  // [B, D]
}

torch::Tensor TimmVisionTransformerImpl::forward_places(const torch::Tensor& images) {
  if (attn_pool) return ImageTowerImpl::forward_places(images);
  check_images(images);
  const auto tokens = transformer->forward(embed(images));
  auto all = ln_post->forward(tokens);
  if (!is_pooled_at_class_token()) {
    const auto mean = config_.final_ln_after_pool ? ln_post->forward(pool(tokens)) : pool(all);
    all = at::cat({mean.unsqueeze(1), all.slice(1, config_.class_token ? 1 : 0)}, 1);
  }
  return pre_logits ? pre_logits->forward(all).tanh() : all;
}

torch::Tensor TimmVisionTransformerImpl::forward_tokens(const torch::Tensor& images) {
  check_images(images);
  const auto tokens = transformer->forward(embed(images));
  return config_.final_ln_after_pool ? tokens : ln_post->forward(tokens);
}

torch::Tensor TimmVisionTransformerImpl::embed(const torch::Tensor& images) const {
  auto x = conv1->forward(images);  // [B, P, D]
  const auto positions = positional_embedding.to(x.scalar_type());
  const int64_t prefix = config_.class_token ? 1 : 0;
  x = drop_patches(x + positions.slice(1, prefix), config_.patch_dropout);  // [B, K, D], K <= P
  if (config_.class_token) {
    const auto token = class_embedding.to(x.scalar_type()) + positions.slice(1, 0, 1);
    x = at::cat({token.expand({x.size(0), 1, -1}), x}, 1);  // [B, 1 + K, D]
  }
  return ln_pre ? ln_pre->forward(x) : x;
}

/// The mean over the patches or what the attention pool makes of all tokens. Shapes: tokens [B, T, D] to [B, D].
torch::Tensor TimmVisionTransformerImpl::pool(const torch::Tensor& tokens) const {
  return attn_pool ? attn_pool->forward(tokens) : tokens.slice(1, config_.class_token ? 1 : 0).mean(1);
}

torch::Tensor TimmVisionTransformerImpl::project(const torch::Tensor& features) const {
  return head ? head->forward(features) : features;
}

int64_t TimmVisionTransformerImpl::num_layer_groups() const {
  return detail::num_block_groups(config_.layers.front());
}

int64_t TimmVisionTransformerImpl::layer_group(const std::string& name) const {
  if (name.starts_with("head.")) return kHeadGroup;
  const bool is_last =
      name.starts_with("ln_post.") || name.starts_with("attn_pool.") || name.starts_with("pre_logits.");
  return detail::block_group(name, "transformer.resblocks.", is_last, config_.layers.front());
}

void TimmVisionTransformerImpl::reset_parameters(at::Generator& generator) {
  const at::NoGradGuard no_grad;
  if (class_embedding.defined()) class_embedding.normal_(0, kTokenStd, generator);
  positional_embedding.normal_(0, detail::kTimmWeightStd, generator);
  conv1->reset_parameters(generator);
  if (ln_pre) ln_pre->reset_parameters();
  transformer->reset_parameters(generator);
  for (const auto& block : transformer->blocks()) {
    block->attn->in_proj_weight.normal_(0, detail::kTimmWeightStd, generator);
    detail::draw_timm_linear(block->attn->out_proj, generator);
    detail::draw_timm_mlp(block->mlp, generator);
  }
  ln_post->reset_parameters();
  if (attn_pool) attn_pool->reset_parameters(generator);
  if (pre_logits) detail::draw_timm_linear(pre_logits, generator);
  if (head) head->reset_parameters(generator);
}

std::string TimmVisionTransformerImpl::checkpoint_name(const std::string& name) const {
  if (name.starts_with("head.")) return "head.proj." + name.substr(std::string("head.").size());
  if (config_.final_ln_after_pool && name.starts_with("ln_post.")) {
    return "trunk.fc_norm." + name.substr(std::string("ln_post.").size());
  }
  return "trunk." + detail::to_timm_name(name);
}

}  // namespace contrastive::models
