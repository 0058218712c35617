#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/models/model_config.h"
#include "contrastive/models/tower.h"

namespace contrastive::models {

/// What every image tower can do.
class CONTRASTIVE_API ImageTowerImpl : public TowerImpl {
 public:
  /// Shapes: images [B, 3, H, W] with H = W = image_size(), to [B, feature_width()], before the projection.
  virtual torch::Tensor forward_features(const torch::Tensor& images) = 0;

  /// The same features, then those of each place of the tower's last grid, row by row, in the space that project()
  /// takes. Shapes: images [B, 3, H, W] to [B, 1 + T, feature_width()]. Throws: ConfigError for towers that pool
  /// with a learned query, or of which there is the projection only: places have no features in that space then.
  virtual torch::Tensor forward_places(const torch::Tensor& images);

  /// Shapes: images [B, 3, H, W] to [B, E], not normalised. A locked tower builds no graph.
  torch::Tensor forward(const torch::Tensor& images);

  /// Seeds what a training step draws at random (patch dropout), so that it can be repeated. The rows of the next
  /// forward pass draw as rows [first_row, ...) of the step's batch do when it is forwarded at once.
  void seed_step(uint64_t seed, int64_t first_row = 0) {
    step_seed_ = seed;
    first_row_ = first_row;
  }

  int64_t image_size() const { return image_size_; }
  int64_t feature_width() const { return feature_width_; }

 protected:
  ImageTowerImpl(int64_t image_size, int64_t feature_width) : image_size_(image_size), feature_width_(feature_width) {}

  /// Throws: Error unless images is a floating point [B, 3, image_size, image_size].
  void check_images(const torch::Tensor& images) const;

  /// Patch dropout: of every sample another random share of the tokens, `share` of them left out (at least one stays).
  /// Nothing happens outside of training. Shapes: patches [B, P, D] to [B, K, D].
  /// Source: Li et al. 2022 (FLIP), arXiv 2212.00794; the number kept is open_clip's.
  torch::Tensor drop_patches(const torch::Tensor& patches, double share) const;

 private:
  int64_t image_size_;
  int64_t feature_width_;
  uint64_t step_seed_ = 0;
  int64_t first_row_ = 0;
};

/// What of an image tower there is. `projection`: the head alone, for features that were computed before.
enum class ImageTowerPart { whole, projection };

/// The tower a config describes. The config must be valid. A tower of the projection alone throws an Error when it is
/// to compute features.
CONTRASTIVE_API std::shared_ptr<ImageTowerImpl> make_image_tower(const ModelConfig& config, torch::Device device,
                                                                 ImageTowerPart part = ImageTowerPart::whole);

}  // namespace contrastive::models
