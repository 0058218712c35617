#include "contrastive/models/image_tower.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include "contrastive/core/error.h"
#include "contrastive/models/bit_resnet.h"
#include "contrastive/models/layers.h"
#include "contrastive/models/mlp_mixer.h"
#include "contrastive/models/modified_resnet.h"
#include "contrastive/models/timm_vision_transformer.h"
#include "contrastive/models/vision_transformer.h"

namespace contrastive::models {
namespace {

/// The head of a tower, under the names that it has there.
class ImageProjectionImpl : public ImageTowerImpl {
 public:
  ImageProjectionImpl(const ModelConfig& config, torch::Device device)
      : ImageTowerImpl(config.vision_cfg.image_size, config.vision_cfg.output_width()) {
    const auto& vision = config.vision_cfg;
    const auto width = vision.output_width();
    if (vision.is_timm()) {
      prefix_ = "head.proj.";
      if (vision.has_projection()) head_ = Linear(width, config.embed_dim, device, vision.proj_bias);
    } else if (vision.is_resnet()) {
      prefix_ = "attnpool.c_proj.";
      head_ = Linear(width, config.embed_dim, device);
    } else {
      matrix_ = register_parameter("proj", at::empty({width, config.embed_dim}, device));
    }
    if (head_) register_module("head", head_);
  }

  torch::Tensor forward_features(const torch::Tensor&) override {
    throw Error("[encode_image] this model has the image tower's projection only: its features were computed before");
  }
  torch::Tensor project(const torch::Tensor& features) const override {
    if (matrix_.defined()) return features.matmul(matrix_);
    return head_ ? head_->forward(features) : features;
  }
  bool has_head() const override { return matrix_.defined() || !head_.is_empty(); }
  int64_t num_layer_groups() const override { return 0; }
  int64_t layer_group(const std::string&) const override { return kHeadGroup; }
  void reset_parameters(at::Generator& generator) override { reset_head(generator); }
  void checkpoint_activations(bool) override {}
  std::string checkpoint_name(const std::string& name) const override {
    return name == "proj" ? name : prefix_ + name.substr(std::string("head.").size());
  }

 private:
  torch::Tensor matrix_;
  Linear head_{nullptr};
  std::string prefix_;
};

}  // namespace

torch::Tensor ImageTowerImpl::forward(const torch::Tensor& images) {
  if (!features_are_locked()) return project(forward_features(images));
  torch::Tensor features;
  {
    const at::NoGradGuard no_grad;
    features = forward_features(images);
  }
  return project(features);
}

torch::Tensor ImageTowerImpl::forward_places(const torch::Tensor&) {
  throw ConfigError("[encode_places] the places of an image have no features in this image tower");
}

void ImageTowerImpl::check_images(const torch::Tensor& images) const {
  TORCH_CHECK(images.dim() == 4 && images.size(1) == 3 && images.size(2) == image_size_ &&
                  images.size(3) == image_size_ && images.is_floating_point(),
              "[encode_image] images must be floating point [B, 3, ", image_size_, ", ", image_size_, "], but are ",
              images.scalar_type(), " ", images.sizes());
}

torch::Tensor ImageTowerImpl::drop_patches(const torch::Tensor& patches, double share) const {
  if (!is_training() || share == 0) return patches;
  const auto batch = patches.size(0), count = patches.size(1);
  const auto kept = std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(count) * (1 - share)));
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(step_seed_);
  const auto order =
      at::rand({first_row_ + batch, count}, generator, at::TensorOptions(at::kFloat)).slice(0, first_row_);
  const auto indices = std::get<1>(order.topk(kept, 1)).to(patches.device());  // [B, K]
  return patches.gather(1, indices.unsqueeze(2).expand({batch, kept, patches.size(2)}));
}

std::shared_ptr<ImageTowerImpl> make_image_tower(const ModelConfig& config, torch::Device device, ImageTowerPart part) {
  if (part == ImageTowerPart::projection) return std::make_shared<ImageProjectionImpl>(config, device);
  const auto& vision = config.vision_cfg;
  const auto activation = activation_of(config.quick_gelu, vision.gelu_tanh);
  switch (vision.family()) {
    case TimmFamily::vit:
      return std::make_shared<TimmVisionTransformerImpl>(vision, config.embed_dim, activation, device);
    case TimmFamily::resnetv2:
      return std::make_shared<BitResNetImpl>(vision, config.embed_dim, device);
    case TimmFamily::mixer:
      return std::make_shared<MlpMixerImpl>(vision, config.embed_dim, activation, device);
    case TimmFamily::none:
      break;
  }
  if (vision.is_resnet()) return std::make_shared<ModifiedResNetImpl>(vision, config.embed_dim, device);
  return std::make_shared<VisionTransformerImpl>(vision, config.embed_dim, activation, device);
}

}  // namespace contrastive::models
