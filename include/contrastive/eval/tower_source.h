#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/core/lazy_tensor.h"
#include "contrastive/image/transform.h"
#include "contrastive/models/model_config.h"

/// One tower of somebody's checkpoint, to start a two-tower model from.
namespace contrastive::eval {

/// FILE, FILE:SUBTREE or a folder. The subtree is part of the tensors' names, as `img` in Google's two-tower files.
struct TowerLocation {
  std::filesystem::path path;
  std::string subtree;
};

/// A path that is there counts as a whole; else what follows the last colon is the subtree.
CONTRASTIVE_API TowerLocation parse_tower_location(const std::string& text);

/// An image tower, opened: its tensors are not read yet.
struct ImageTowerSource {
  std::string format;  ///< what was found, as "ViT (npz)"
  models::VisionConfig config;
  int64_t embed_dim = 0;             ///< of the checkpoint: behind its projection, or the tower's width
  image::PreprocessSpec preprocess;  ///< that the tower was trained with, as far as is known
  std::vector<LazyTensor> tensors;   ///< open_clip's names, without `visual.`
};

/// A text tower, opened.
struct TextTowerSource {
  std::string format;
  models::TextConfig config;
  std::vector<LazyTensor> tensors;  ///< open_clip's names, without `text.`
  std::filesystem::path folder;     ///< where tokenizer files would be
};

/// Opens the image tower of Google's npz files (AugReg and other ViTs, BiT, MLP-Mixer, two-tower files), of timm's,
/// DINO's and MoCo-v3's weights, or of a CLIP model (a folder or a weights file). Without `expected` the config comes
/// from the file; with it the file must hold that tower, positions for another image size are resized, and what a file
/// doesn't say (heads of torch's files, activation) comes from there.
/// Throws: CheckpointError, ConfigError, naming the file.
CONTRASTIVE_API ImageTowerSource open_image_tower(const std::string& location,
                                                  const std::optional<models::VisionConfig>& expected = {});

/// The same for a text tower: of Google's npz files, a BERT of transformers (folder), or a CLIP model.
CONTRASTIVE_API TextTowerSource open_text_tower(const std::string& location,
                                                const std::optional<models::TextConfig>& expected = {});

/// SHA-256 over what makes features before the projection out of preprocessed pixels: the config of the tower and the
/// values of its tensors (in fp32, whatever the file has). Reads all of them, one at a time.
CONTRASTIVE_API std::string image_tower_fingerprint(const models::ModelConfig& config,
                                                    const std::vector<LazyTensor>& tensors);

}  // namespace contrastive::eval
