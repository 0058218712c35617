#include "contrastive/models/modified_resnet.h"

#include <cmath>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "models/attention.h"
#include "models/checkpoint.h"

namespace contrastive::models {

DownsampleImpl::DownsampleImpl(int64_t in_channels, int64_t out_channels, int64_t stride, torch::Device device)
    : stride_(stride) {
  conv = register_module("0", Conv2d(in_channels, out_channels, 1, 1, device));
  bn = register_module("1", BatchNorm2d(out_channels, device));
}

torch::Tensor DownsampleImpl::forward(const torch::Tensor& x) {
  return bn->forward(conv->forward(stride_ > 1 ? at::avg_pool2d(x, stride_) : x));
}

void DownsampleImpl::reset_parameters(at::Generator& generator) {
  conv->reset_parameters(generator);
  bn->reset_parameters();
}

BottleneckImpl::BottleneckImpl(int64_t in_channels, int64_t planes, int64_t stride, torch::Device device)
    : stride_(stride) {
  const auto out_channels = planes * kExpansion;
  conv1 = register_module("conv1", Conv2d(in_channels, planes, 1, 1, device));
  bn1 = register_module("bn1", BatchNorm2d(planes, device));
  conv2 = register_module("conv2", Conv2d(planes, planes, 3, 1, device));
  bn2 = register_module("bn2", BatchNorm2d(planes, device));
  conv3 = register_module("conv3", Conv2d(planes, out_channels, 1, 1, device));
  bn3 = register_module("bn3", BatchNorm2d(out_channels, device));
  if (stride > 1 || in_channels != out_channels) {
    downsample = register_module("downsample", Downsample(in_channels, out_channels, stride, device));
  }
}

torch::Tensor BottleneckImpl::forward(const torch::Tensor& x) {
  auto y = bn1->forward_relu(conv1->forward(x));
  y = bn2->forward_relu(conv2->forward(y));
  if (stride_ > 1) y = at::avg_pool2d(y, stride_);
  return bn3->forward_relu(conv3->forward(y), downsample ? downsample->forward(x) : x);
}

void BottleneckImpl::reset_parameters(at::Generator& generator) {
  for (auto* conv : {&conv1, &conv2, &conv3}) (*conv)->reset_parameters(generator);
  for (auto* bn : {&bn1, &bn2, &bn3}) (*bn)->reset_parameters();
  if (downsample) downsample->reset_parameters(generator);
  // Every block starts as its shortcut.
  const at::NoGradGuard no_grad;
  bn3->weight.zero_();
}

AttentionPool2dImpl::AttentionPool2dImpl(int64_t side, int64_t channels, int64_t heads, int64_t embed_dim,
                                         torch::Device device)
    : heads_(heads) {
  positional_embedding = register_parameter("positional_embedding", at::empty({1 + side * side, channels}, device));
  k_proj = register_module("k_proj", Linear(channels, channels, device));
  q_proj = register_module("q_proj", Linear(channels, channels, device));
  v_proj = register_module("v_proj", Linear(channels, channels, device));
  c_proj = register_module("c_proj", Linear(channels, embed_dim, device));
}

torch::Tensor AttentionPool2dImpl::tokens(const torch::Tensor& x) const {
  const auto places = x.flatten(2).transpose(1, 2);  // [B, h w, C]
  return at::cat({places.mean(1, /*keepdim=*/true), places}, 1) + positional_embedding.to(x.scalar_type());
}

torch::Tensor AttentionPool2dImpl::forward_features(const torch::Tensor& x) const {
  const auto all = tokens(x);
  return detail::single_query_attention(q_proj->forward(all.select(1, 0)), k_proj->forward(all), v_proj->forward(all),
                                        heads_, {});  // [B, C]
}

torch::Tensor AttentionPool2dImpl::forward_places(const torch::Tensor& x) const {
  const auto all = tokens(x);
  const auto qkv = at::cat({q_proj->forward(all), k_proj->forward(all), v_proj->forward(all)}, 2);
  return detail::packed_attention(qkv, heads_, /*causal=*/false);
}

void AttentionPool2dImpl::reset_parameters(at::Generator& generator) {
  const double std = 1.0 / std::sqrt(static_cast<double>(c_proj->weight.size(1)));
  const at::NoGradGuard no_grad;
  positional_embedding.normal_(0, std, generator);
  for (auto* linear : {&k_proj, &q_proj, &v_proj, &c_proj}) {
    (*linear)->reset_parameters(generator);
    (*linear)->weight.normal_(0, std, generator);
  }
}

ModifiedResNetImpl::ModifiedResNetImpl(const VisionConfig& config, int64_t embed_dim, torch::Device device)
    : ImageTowerImpl(config.image_size, config.output_width()) {
  const auto width = config.width;
  conv1 = register_module("conv1", Conv2d(3, width / 2, 3, 2, device));
  bn1 = register_module("bn1", BatchNorm2d(width / 2, device));
  conv2 = register_module("conv2", Conv2d(width / 2, width / 2, 3, 1, device));
  bn2 = register_module("bn2", BatchNorm2d(width / 2, device));
  conv3 = register_module("conv3", Conv2d(width / 2, width, 3, 1, device));
  bn3 = register_module("bn3", BatchNorm2d(width, device));

  int64_t channels = width, planes = width, stage = 0;
  for (auto* layer : {&layer1, &layer2, &layer3, &layer4}) {
    register_module("layer" + std::to_string(stage + 1), *layer);
    for (int64_t i = 0; i < config.layers[stage]; ++i) {
      blocks_.emplace_back(channels, planes, stage > 0 && i == 0 ? 2 : 1, device);
      (*layer)->push_back(blocks_.back());
      channels = planes * BottleneckImpl::kExpansion;
    }
    planes *= 2;
    ++stage;
  }
  attnpool = register_module(
      "attnpool", AttentionPool2d(config.image_size / 32, config.output_width(), config.heads(), embed_dim, device));
}

torch::Tensor ModifiedResNetImpl::stem(const torch::Tensor& images) {
  auto x = bn1->forward_relu(conv1->forward(images));
  x = bn2->forward_relu(conv2->forward(x));
  x = bn3->forward_relu(conv3->forward(x));
  return at::avg_pool2d(x, 2);  // [B, width, H / 4, W / 4]
}

/// Shapes: images [B, 3, H, W] to [B, C, H / 32, W / 32].
torch::Tensor ModifiedResNetImpl::feature_map(const torch::Tensor& images) {
  check_images(images);
  // Convolutions of both devices' libraries work in this layout; others are converted on the way in and out of each.
  auto x = stem(images.to(conv1->weight.scalar_type()).contiguous(at::MemoryFormat::ChannelsLast));
  for (const auto& block : blocks_) {
    x = detail::run_block(checkpoint_, *block, x,
                          [kept = block.ptr()](const torch::Tensor& y) { return kept->forward(y); });
  }
  return x;
}

torch::Tensor ModifiedResNetImpl::forward_features(const torch::Tensor& images) {
  return attnpool->forward_features(feature_map(images));
}

torch::Tensor ModifiedResNetImpl::forward_places(const torch::Tensor& images) {
  return attnpool->forward_places(feature_map(images));
}

int64_t ModifiedResNetImpl::layer_group(const std::string& name) const {
  if (name.starts_with("attnpool.c_proj.")) return kHeadGroup;
  if (name.starts_with("attnpool.")) return num_layer_groups() - 1;
  const std::string stage = "layer";
  return name.starts_with(stage) ? name[stage.size()] - '0' : 0;
}

void ModifiedResNetImpl::reset_parameters(at::Generator& generator) {
  for (auto* conv : {&conv1, &conv2, &conv3}) (*conv)->reset_parameters(generator);
  for (auto* bn : {&bn1, &bn2, &bn3}) (*bn)->reset_parameters();
  for (auto& block : blocks_) block->reset_parameters(generator);
  attnpool->reset_parameters(generator);
}

}  // namespace contrastive::models
