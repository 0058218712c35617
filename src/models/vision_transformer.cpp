#include "contrastive/models/vision_transformer.h"

#include <cmath>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "models/layer_groups.h"

namespace contrastive::models {

VisionTransformerImpl::VisionTransformerImpl(const VisionConfig& config, int64_t embed_dim, Activation activation,
                                             torch::Device device)
    : ImageTowerImpl(config.image_size, config.output_width()), config_(config) {
  const auto width = config.width, grid = config.image_size / config.patch_size;
  class_embedding = register_parameter("class_embedding", at::empty({width}, device));
  positional_embedding = register_parameter("positional_embedding", at::empty({1 + grid * grid, width}, device));
  proj = register_parameter("proj", at::empty({width, embed_dim}, device));
  conv1 = register_module("conv1", PatchEmbedding(config.patch_size, width, device));
  if (!config.no_ln_pre) ln_pre = register_module("ln_pre", LayerNorm(width, device, config.norm_eps));
  transformer = register_module("transformer", Transformer(TransformerOptions{.width = width,
                                                                              .layers = config.layers.front(),
                                                                              .heads = config.heads(),
                                                                              .mlp_ratio = config.mlp_ratio,
                                                                              .activation = activation,
                                                                              .causal = false,
                                                                              .norm_eps = config.norm_eps,
                                                                              .ls_init_value = config.ls_init_value},
                                                           device));
  ln_post = register_module("ln_post", LayerNorm(width, device, config.norm_eps));
}

torch::Tensor VisionTransformerImpl::forward_features(const torch::Tensor& images) {
  check_images(images);
  return pool(embed(images));  // [B, D]
}

torch::Tensor VisionTransformerImpl::forward_places(const torch::Tensor& images) {
  check_images(images);
  const auto tokens = transformer->forward(embed(images));
  const auto all = ln_post->forward(tokens);
  if (config_.pool_type == "tok") return all;
  const auto patches = all.slice(1, 1);
  const auto mean = config_.final_ln_after_pool ? ln_post->forward(tokens.slice(1, 1).mean(1)) : patches.mean(1);
  return at::cat({mean.unsqueeze(1), patches}, 1);
}

int64_t VisionTransformerImpl::num_layer_groups() const {
  return detail::num_block_groups(config_.layers.front());
}

int64_t VisionTransformerImpl::layer_group(const std::string& name) const {
  if (name == "proj") return kHeadGroup;
  return detail::block_group(name, "transformer.resblocks.", name.starts_with("ln_post."), config_.layers.front());
}

torch::Tensor VisionTransformerImpl::embed(const torch::Tensor& images) const {
  auto x = conv1->forward(images);  // [B, P, D]
  const auto positions = positional_embedding.to(x.scalar_type());
  const auto class_token = class_embedding.to(x.scalar_type()) + positions[0];
  x = drop_patches(x + positions.slice(0, 1), config_.patch_dropout);  // [B, K, D], K <= P
  x = at::cat({class_token.expand({x.size(0), 1, -1}), x}, 1);         // [B, 1 + K, D]
  return ln_pre ? ln_pre->forward(x) : x;
}

/// Shapes: x [B, 1 + K, D], before the blocks, to [B, D].
torch::Tensor VisionTransformerImpl::pool(const torch::Tensor& x) const {
  if (config_.pool_type == "tok") return ln_post->forward(transformer->forward_pooled(x, {}));
  const auto patches = transformer->forward(x).slice(1, 1);  // [B, K, D]
  return config_.final_ln_after_pool ? ln_post->forward(patches.mean(1)) : ln_post->forward(patches).mean(1);
}

void VisionTransformerImpl::reset_parameters(at::Generator& generator) {
  const at::NoGradGuard no_grad;
  const double std = 1.0 / std::sqrt(static_cast<double>(config_.width));
  class_embedding.normal_(0, std, generator);
  positional_embedding.normal_(0, std, generator);
  proj.normal_(0, std, generator);
  conv1->reset_parameters(generator);
  if (ln_pre) ln_pre->reset_parameters();
  transformer->reset_parameters(generator);
  ln_post->reset_parameters();
}

}  // namespace contrastive::models
