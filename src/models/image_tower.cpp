#include "contrastive/models/image_tower.h"

#include <c10/util/Exception.h>

#include "contrastive/models/modified_resnet.h"
#include "contrastive/models/vision_transformer.h"

namespace contrastive::models {

void ImageTowerImpl::check_images(const torch::Tensor& images) const {
  TORCH_CHECK(images.dim() == 4 && images.size(1) == 3 && images.size(2) == image_size_ &&
                  images.size(3) == image_size_ && images.is_floating_point(),
              "[encode_image] images must be floating point [B, 3, ", image_size_, ", ", image_size_, "], but are ",
              images.scalar_type(), " ", images.sizes());
}

std::shared_ptr<ImageTowerImpl> make_image_tower(const ModelConfig& config, torch::Device device) {
  if (config.vision_cfg.is_resnet()) {
    return std::make_shared<ModifiedResNetImpl>(config.vision_cfg, config.embed_dim, device);
  }
  const auto activation = config.quick_gelu ? Activation::quick_gelu : Activation::gelu;
  return std::make_shared<VisionTransformerImpl>(config.vision_cfg, config.embed_dim, activation, device);
}

}  // namespace contrastive::models
