#include "contrastive/models/bit_resnet.h"

#include <cmath>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "models/checkpoint.h"
#include "models/layer_groups.h"
#include "models/named_scope.h"

namespace contrastive::models {
namespace {

constexpr double kGroupNormEpsilon = 1e-5;
constexpr int64_t kStemKernel = 7;
constexpr int64_t kStemStride = 2;

}  // namespace

StdConv2dImpl::StdConv2dImpl(int64_t in_channels, int64_t out_channels, int64_t kernel, int64_t stride, double eps,
                             torch::Device device)
    : stride_(stride), eps_(eps) {
  weight = register_parameter("weight", at::empty({out_channels, in_channels, kernel, kernel}, device));
}

torch::Tensor StdConv2dImpl::forward(const torch::Tensor& x) const {
  // A layer norm without affine part standardises each row, with its gradient, in one pass.
  const auto rows = weight.flatten(1).to(at::promote_types(weight.scalar_type(), at::kFloat));
  const auto standardised = at::layer_norm(rows, {rows.size(1)}, {}, {}, eps_).view_as(weight);
  return at::conv2d(x, standardised.to(x.scalar_type()), {}, stride_, (weight.size(2) - 1) / 2);
}

void StdConv2dImpl::reset_parameters(at::Generator& generator) {
  const at::NoGradGuard no_grad;
  const auto fan_out = weight.size(0) * weight.size(2) * weight.size(3);
  weight.normal_(0, std::sqrt(2.0 / static_cast<double>(fan_out)), generator);
}

GroupNormReluImpl::GroupNormReluImpl(int64_t groups, int64_t channels, torch::Device device) : groups_(groups) {
  weight = register_parameter("weight", at::empty({channels}, device));
  bias = register_parameter("bias", at::empty({channels}, device));
}

torch::Tensor GroupNormReluImpl::forward(const torch::Tensor& x) const {
  return at::group_norm(x, groups_, weight, bias, kGroupNormEpsilon).relu_().to(x.scalar_type());
}

void GroupNormReluImpl::reset_parameters() {
  const at::NoGradGuard no_grad;
  weight.fill_(1);
  bias.zero_();
}

PreActBottleneckImpl::PreActBottleneckImpl(const VisionConfig& config, int64_t in_channels, int64_t out_channels,
                                           int64_t stride, bool has_downsample, torch::Device device) {
  const auto middle = out_channels / kExpansion;
  const auto conv = [&](int64_t in, int64_t out, int64_t kernel, int64_t step) {
    return StdConv2d(in, out, kernel, step, config.weight_norm_eps, device);
  };
  if (has_downsample) {
    downsample =
        detail::named_scope(*this, "downsample")->register_module("conv", conv(in_channels, out_channels, 1, stride));
  }
  norm1 = register_module("norm1", GroupNormRelu(config.norm_groups, in_channels, device));
  conv1 = register_module("conv1", conv(in_channels, middle, 1, 1));
  norm2 = register_module("norm2", GroupNormRelu(config.norm_groups, middle, device));
  conv2 = register_module("conv2", conv(middle, middle, 3, stride));
  norm3 = register_module("norm3", GroupNormRelu(config.norm_groups, middle, device));
  conv3 = register_module("conv3", conv(middle, out_channels, 1, 1));
}

torch::Tensor PreActBottleneckImpl::forward(const torch::Tensor& x) const {
  const auto active = norm1->forward(x);
  auto y = conv2->forward(norm2->forward(conv1->forward(active)));
  y = conv3->forward(norm3->forward(y));
  return y.add_(downsample ? downsample->forward(active) : x);
}

void PreActBottleneckImpl::reset_parameters(at::Generator& generator) {
  for (auto* conv : {&conv1, &conv2, &conv3}) (*conv)->reset_parameters(generator);
  for (auto* group_norm : {&norm1, &norm2, &norm3}) (*group_norm)->reset_parameters();
  if (downsample) downsample->reset_parameters(generator);
}

BitResNetImpl::BitResNetImpl(const VisionConfig& config, int64_t embed_dim, torch::Device device)
    : ImageTowerImpl(config.image_size, config.output_width()),
      num_stages_(static_cast<int64_t>(config.layers.size())) {
  const auto trunk = detail::named_scope(*this, "trunk");
  stem = detail::named_scope(*trunk, "stem")
             ->register_module("conv",
                               StdConv2d(3, config.width, kStemKernel, kStemStride, config.weight_norm_eps, device));
  const auto stages = detail::named_scope(*trunk, "stages");
  int64_t channels = config.width, out_channels = config.width * PreActBottleneckImpl::kExpansion;
  for (int64_t stage = 0; stage < num_stages_; ++stage) {
    const auto scope = detail::named_scope(*detail::named_scope(*stages, std::to_string(stage)), "blocks");
    for (int64_t i = 0; i < config.layers[static_cast<size_t>(stage)]; ++i) {
      const auto stride = stage > 0 && i == 0 ? 2 : 1;
      blocks.emplace_back(config, channels, out_channels, stride, /*has_downsample=*/i == 0, device);
      scope->register_module(std::to_string(i), blocks.back());
      channels = out_channels;
    }
    out_channels *= 2;
  }
  norm = trunk->register_module("norm", GroupNormRelu(config.norm_groups, channels, device));
  if (config.has_projection()) {
    proj = detail::named_scope(*this, "head")
               ->register_module("proj", Linear(channels, embed_dim, device, config.proj_bias));
  }
}

/// Shapes: images [B, 3, H, W] to [B, D, H / 32, W / 32].
torch::Tensor BitResNetImpl::feature_map(const torch::Tensor& images) {
  check_images(images);
  // ATen's group norm is as fast and six times more exact in this layout than in channels-last.
  auto x = stem->forward(images.to(stem->weight.scalar_type()).contiguous());
  x = at::max_pool2d(at::constant_pad_nd(x, {1, 1, 1, 1}), /*kernel_size=*/3, /*stride=*/2);  // [B, width, H/4, W/4]
  for (const auto& block : blocks) {
    x = detail::run_block(checkpoint_, *block, x, [block](const torch::Tensor& y) { return block->forward(y); });
  }
  return norm->forward(x);
}

torch::Tensor BitResNetImpl::forward_features(const torch::Tensor& images) {
  return feature_map(images).mean({2, 3});  // [B, D]
}

torch::Tensor BitResNetImpl::forward_places(const torch::Tensor& images) {
  const auto map = feature_map(images);
  return at::cat({map.mean({2, 3}).unsqueeze(1), map.flatten(2).transpose(1, 2)}, 1);
}

torch::Tensor BitResNetImpl::project(const torch::Tensor& features) const {
  return proj ? proj->forward(features) : features;
}

int64_t BitResNetImpl::layer_group(const std::string& name) const {
  if (name.starts_with("head.")) return kHeadGroup;
  return detail::block_group(name, "trunk.stages.", name.starts_with("trunk.norm."), num_stages_);
}

void BitResNetImpl::reset_parameters(at::Generator& generator) {
  stem->reset_parameters(generator);
  for (auto& block : blocks) block->reset_parameters(generator);
  norm->reset_parameters();
  if (proj) proj->reset_parameters(generator);
}

}  // namespace contrastive::models
