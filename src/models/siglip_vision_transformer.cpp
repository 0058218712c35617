#include "contrastive/models/siglip_vision_transformer.h"

#include <cmath>
#include <numbers>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "models/attention.h"
#include "models/timm_names.h"

namespace contrastive::models {
namespace {

constexpr double kWeightStd = 0.02;

/// timm's initialisation of every linear layer of a ViT.
void draw_linear(const Linear& linear, at::Generator& generator) {
  linear->weight.normal_(0, kWeightStd, generator);
  linear->bias.zero_();
}

/// A normal distribution cut at two standard deviations.
void draw_truncated_normal(const torch::Tensor& values, double std, at::Generator& generator) {
  const double edge = std::erf(2.0 / std::numbers::sqrt2);
  values.uniform_(-edge, edge, generator).erfinv_().mul_(std * std::numbers::sqrt2);
}

void draw_mlp(const Mlp& mlp, at::Generator& generator) {
  draw_linear(mlp->c_fc, generator);
  draw_linear(mlp->c_proj, generator);
}

}  // namespace

AttentionPoolLatentImpl::AttentionPoolLatentImpl(const TransformerOptions& options, torch::Device device)
    : heads_(options.heads) {
  const auto width = options.width;
  latent = register_parameter("latent", at::empty({1, 1, width}, device));
  q = register_module("q", Linear(width, width, device));
  kv = register_module("kv", Linear(width, 2 * width, device));
  proj = register_module("proj", Linear(width, width, device));
  norm = register_module("norm", LayerNorm(width, device, options.norm_eps));
  mlp = register_module("mlp", Mlp(options, device));
}

torch::Tensor AttentionPoolLatentImpl::forward(const torch::Tensor& x) const {
  const auto batch = x.size(0), width = x.size(2);
  const auto query = q->forward(latent.view({1, width})).expand({batch, width});
  const auto keys_values = kv->forward(x).split(width, -1);  // 2 x [B, P, D]
  const auto pooled =
      proj->forward(detail::single_query_attention(query, keys_values[0], keys_values[1], heads_, {}));  // [B, D]
  return pooled + mlp->forward(norm->forward(pooled));
}

void AttentionPoolLatentImpl::reset_parameters(at::Generator& generator) {
  const at::NoGradGuard no_grad;
  draw_truncated_normal(latent, 1.0 / std::sqrt(static_cast<double>(latent.size(2))), generator);
  for (auto* linear : {&q, &kv, &proj}) draw_linear(*linear, generator);
  norm->reset_parameters();
  draw_mlp(mlp, generator);
}

SiglipVisionTransformerImpl::SiglipVisionTransformerImpl(const VisionConfig& config, Activation activation,
                                                         torch::Device device)
    : ImageTowerImpl(config.image_size), patch_dropout_(config.patch_dropout) {
  const auto width = config.width, grid = config.image_size / config.patch_size;
  const TransformerOptions options{.width = width,
                                   .layers = config.layers.front(),
                                   .heads = config.heads(),
                                   .mlp_ratio = config.mlp_ratio,
                                   .activation = activation,
                                   .causal = false,
                                   .norm_eps = config.norm_eps,
                                   .ls_init_value = {}};
  positional_embedding = register_parameter("positional_embedding", at::empty({1, grid * grid, width}, device));
  conv1 = register_module("conv1", PatchEmbedding(config.patch_size, width, device, /*has_bias=*/true));
  transformer = register_module("transformer", Transformer(options, device));
  ln_post = register_module("ln_post", LayerNorm(width, device, config.norm_eps));
  attn_pool = register_module("attn_pool", AttentionPoolLatent(options, device));
}

torch::Tensor SiglipVisionTransformerImpl::forward(const torch::Tensor& images) {
  check_images(images);
  auto x = conv1->forward(images);                                                 // [B, P, D]
  x = drop_patches(x + positional_embedding.to(x.scalar_type()), patch_dropout_);  // [B, K, D], K <= P
  return attn_pool->forward(ln_post->forward(transformer->forward(x)));            // [B, D]
}

void SiglipVisionTransformerImpl::reset_parameters(at::Generator& generator) {
  const at::NoGradGuard no_grad;
  positional_embedding.normal_(0, kWeightStd, generator);
  conv1->reset_parameters(generator);
  transformer->reset_parameters(generator);
  for (const auto& block : transformer->blocks()) {
    block->attn->in_proj_weight.normal_(0, kWeightStd, generator);
    draw_linear(block->attn->out_proj, generator);
    draw_mlp(block->mlp, generator);
  }
  ln_post->reset_parameters();
  attn_pool->reset_parameters(generator);
}

std::string SiglipVisionTransformerImpl::checkpoint_name(const std::string& name) const {
  return "trunk." + detail::to_timm_name(name);
}

}  // namespace contrastive::models
