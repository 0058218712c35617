#pragma once

#include <memory>
#include <string>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/core/lazy_tensor.h"
#include "contrastive/image/transform.h"
#include "contrastive/models/image_tower.h"
#include "contrastive/train/run_options.h"

namespace contrastive::train {

/// The image tower that a run starts from: that of image.checkpoint, or of `weights`.
struct StartingImageTower {
  std::string format;
  std::vector<LazyTensor> tensors;  ///< open_clip's names without `visual.`, not read yet
};

/// Images that a locked tower forwards at a time: image.batch_size, or the batch, 256 at most. Live and cached features
/// of equal batches have equal bits.
CONTRASTIVE_API int64_t locked_batch_size(const RunOptions& options);

/// Throws: ConfigError if the run has neither; CheckpointError if there is no such tower.
CONTRASTIVE_API StartingImageTower find_image_tower(const RunOptions& options);

/// An image tower as a locked run uses it, ready to compute features.
struct OpenedImageTower {
  std::shared_ptr<models::ImageTowerImpl> tower;  ///< on the CPU, locked, in eval mode
  image::PreprocessSpec preprocess;
  std::string fingerprint;  ///< see eval::image_tower_fingerprint
};

/// Reads the tower's weights. Throws: as find_image_tower.
CONTRASTIVE_API OpenedImageTower open_image_tower(const RunOptions& options);

/// The same without the fingerprint, for which all weights would be read twice.
CONTRASTIVE_API OpenedImageTower open_trusted_image_tower(const RunOptions& options);

/// Of the tower of find_image_tower, without keeping it in memory.
CONTRASTIVE_API std::string image_tower_fingerprint(const RunOptions& options, const StartingImageTower& tower);

}  // namespace contrastive::train
