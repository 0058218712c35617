#include "contrastive/models/mlp_mixer.h"

#include <cmath>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "models/checkpoint.h"
#include "models/layer_groups.h"
#include "models/named_scope.h"

namespace contrastive::models {
namespace {

constexpr double kBiasStd = 1e-6;

/// timm's: Xavier-uniform weights, biases next to zero.
void draw_linear(const Linear& linear, at::Generator& generator) {
  const at::NoGradGuard no_grad;
  const double bound = std::sqrt(6.0 / static_cast<double>(linear->weight.size(0) + linear->weight.size(1)));
  linear->weight.uniform_(-bound, bound, generator);
  linear->bias.normal_(0, kBiasStd, generator);
}

int64_t num_patches(const VisionConfig& config) {
  const auto grid = config.image_size / config.patch_size;
  return grid * grid;
}

int64_t channel_mlp_width(const VisionConfig& config) {
  return TransformerOptions{.width = config.width, .mlp_ratio = config.mlp_ratio}.mlp_width();
}

}  // namespace

TimmMlpImpl::TimmMlpImpl(int64_t width, int64_t hidden_width, Activation activation, torch::Device device)
    : activation_(activation) {
  fc1 = register_module("fc1", Linear(width, hidden_width, device));
  fc2 = register_module("fc2", Linear(hidden_width, width, device));
}

torch::Tensor TimmMlpImpl::forward(const torch::Tensor& x) const {
  return fc2->forward(activate(activation_, fc1->forward(x)));
}

void TimmMlpImpl::reset_parameters(at::Generator& generator) {
  draw_linear(fc1, generator);
  draw_linear(fc2, generator);
}

MixerBlockImpl::MixerBlockImpl(const VisionConfig& config, Activation activation, torch::Device device) {
  norm1 = register_module("norm1", LayerNorm(config.width, device, config.norm_eps));
  mlp_tokens = register_module("mlp_tokens", TimmMlp(num_patches(config), config.token_mlp_width, activation, device));
  norm2 = register_module("norm2", LayerNorm(config.width, device, config.norm_eps));
  mlp_channels = register_module("mlp_channels", TimmMlp(config.width, channel_mlp_width(config), activation, device));
}

torch::Tensor MixerBlockImpl::forward(const torch::Tensor& x) const {
  const auto y = x + mlp_tokens->forward(norm1->forward(x).transpose(1, 2)).transpose(1, 2);
  return y + mlp_channels->forward(norm2->forward(y));
}

void MixerBlockImpl::reset_parameters(at::Generator& generator) {
  norm1->reset_parameters();
  mlp_tokens->reset_parameters(generator);
  norm2->reset_parameters();
  mlp_channels->reset_parameters(generator);
}

MlpMixerImpl::MlpMixerImpl(const VisionConfig& config, int64_t embed_dim, Activation activation, torch::Device device)
    : ImageTowerImpl(config.image_size, config.output_width()) {
  const auto trunk = detail::named_scope(*this, "trunk");
  stem = detail::named_scope(*trunk, "stem")
             ->register_module("proj", PatchEmbedding(config.patch_size, config.width, device, /*has_bias=*/true));
  const auto blocks_scope = detail::named_scope(*trunk, "blocks");
  for (int64_t i = 0; i < config.layers.front(); ++i) {
    blocks.emplace_back(config, activation, device);
    blocks_scope->register_module(std::to_string(i), blocks.back());
  }
  norm = trunk->register_module("norm", LayerNorm(config.width, device, config.norm_eps));
  if (config.has_projection()) {
    proj = detail::named_scope(*this, "head")
               ->register_module("proj", Linear(config.output_width(), embed_dim, device, config.proj_bias));
  }
}

/// Shapes: images [B, 3, H, W] to [B, P, D].
torch::Tensor MlpMixerImpl::forward_patches(const torch::Tensor& images) {
  check_images(images);
  auto x = stem->forward(images);  // [B, P, D]
  for (const auto& block : blocks) {
    x = detail::run_block(checkpoint_, *block, x, [block](const torch::Tensor& y) { return block->forward(y); });
  }
  return norm->forward(x);
}

torch::Tensor MlpMixerImpl::forward_features(const torch::Tensor& images) {
  return forward_patches(images).mean(1);  // [B, D]
}

torch::Tensor MlpMixerImpl::forward_places(const torch::Tensor& images) {
  const auto patches = forward_patches(images);
  return at::cat({patches.mean(1, /*keepdim=*/true), patches}, 1);
}

torch::Tensor MlpMixerImpl::project(const torch::Tensor& features) const {
  return proj ? proj->forward(features) : features;
}

int64_t MlpMixerImpl::num_layer_groups() const {
  return detail::num_block_groups(static_cast<int64_t>(blocks.size()));
}

int64_t MlpMixerImpl::layer_group(const std::string& name) const {
  if (name.starts_with("head.")) return kHeadGroup;
  return detail::block_group(name, "trunk.blocks.", name.starts_with("trunk.norm."),
                             static_cast<int64_t>(blocks.size()));
}

void MlpMixerImpl::reset_parameters(at::Generator& generator) {
  stem->reset_parameters(generator);
  for (auto& block : blocks) block->reset_parameters(generator);
  norm->reset_parameters();
  if (proj) proj->reset_parameters(generator);
}

}  // namespace contrastive::models
