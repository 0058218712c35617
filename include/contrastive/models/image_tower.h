#pragma once

#include <cstdint>
#include <memory>
#include <string>

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

  /// Whether training steps keep only the input of each block and run it again in the backward pass.
  virtual void checkpoint_activations(bool on) = 0;

  /// The name in published checkpoints of a tensor that this module calls `name`.
  virtual std::string checkpoint_name(const std::string& name) const { return name; }

  /// Seeds what a training step draws at random (patch dropout), so that it can be repeated. The rows of the next
  /// forward pass draw as rows [first_row, ...) of the step's batch do when it is forwarded at once.
  void seed_step(uint64_t seed, int64_t first_row = 0) {
    step_seed_ = seed;
    first_row_ = first_row;
  }

  int64_t image_size() const { return image_size_; }

 protected:
  explicit ImageTowerImpl(int64_t image_size) : image_size_(image_size) {}

  /// Throws: Error unless images is a floating point [B, 3, image_size, image_size].
  void check_images(const torch::Tensor& images) const;

  /// Patch dropout: of every sample another random share of the tokens, `share` of them left out (at least one stays).
  /// Nothing happens outside of training. Shapes: patches [B, P, D] to [B, K, D].
  /// Source: Li et al. 2022 (FLIP), arXiv 2212.00794; the number kept is open_clip's.
  torch::Tensor drop_patches(const torch::Tensor& patches, double share) const;

 private:
  int64_t image_size_;
  uint64_t step_seed_ = 0;
  int64_t first_row_ = 0;
};

/// The tower a config describes. The config must be valid.
CONTRASTIVE_API std::shared_ptr<ImageTowerImpl> make_image_tower(const ModelConfig& config, torch::Device device);

}  // namespace contrastive::models
