#include "contrastive/models/image_tower.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/util/Exception.h>

#include "contrastive/models/modified_resnet.h"
#include "contrastive/models/siglip_vision_transformer.h"
#include "contrastive/models/vision_transformer.h"

namespace contrastive::models {

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

std::shared_ptr<ImageTowerImpl> make_image_tower(const ModelConfig& config, torch::Device device) {
  if (config.vision_cfg.is_resnet()) {
    return std::make_shared<ModifiedResNetImpl>(config.vision_cfg, config.embed_dim, device);
  }
  const auto activation = activation_of(config.quick_gelu, config.vision_cfg.gelu_tanh);
  if (config.vision_cfg.is_siglip()) {
    return std::make_shared<SiglipVisionTransformerImpl>(config.vision_cfg, activation, device);
  }
  return std::make_shared<VisionTransformerImpl>(config.vision_cfg, config.embed_dim, activation, device);
}

}  // namespace contrastive::models
