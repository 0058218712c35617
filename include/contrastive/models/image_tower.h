#pragma once

#include <memory>

#include <ATen/core/Generator.h>
#include <torch/nn/module.h>
#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/models/model_config.h"

namespace contrastive::models {

/// What every image tower can do.
class CONTRASTIVE_API ImageTowerImpl : public torch::nn::Module {
 public:
  /// Shapes: images [B, 3, H, W] with H = W = image_size(), to [B, embed_dim], not normalised.
  virtual torch::Tensor forward(const torch::Tensor& images) = 0;

  /// Draws every parameter anew from the generator.
  virtual void reset_parameters(at::Generator& generator) = 0;

  int64_t image_size() const { return image_size_; }

 protected:
  explicit ImageTowerImpl(int64_t image_size) : image_size_(image_size) {}

  /// Throws: Error unless images is a floating point [B, 3, image_size, image_size].
  void check_images(const torch::Tensor& images) const;

 private:
  int64_t image_size_;
};

/// The tower a config describes. The config must be valid.
CONTRASTIVE_API std::shared_ptr<ImageTowerImpl> make_image_tower(const ModelConfig& config, torch::Device device);

}  // namespace contrastive::models
