#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "contrastive/core/config_node.h"
#include "contrastive/core/export.h"
#include "contrastive/core/lazy_tensor.h"
#include "contrastive/models/model_config.h"

/// Pre-trained towers in the layouts they are published in. Sizes are told from names and shapes; tensors get
/// open_clip's names and are made when asked for. Every tensor of a file is used or is on a list of what is left out
/// (classifiers, training state); all others, missing ones and wrong shapes are errors that list them.
///
/// Layouts of images: Google's .npz of ViTs (the original and AugReg ones, big_vision's, SigLIP's), MLP-Mixers and BiT;
/// PyTorch files with timm's names (also those of DINO and MoCo-v3), and the image tower of OpenAI's and open_clip's
/// files. Of texts: LiT's and SigLIP's encoder and BERT in Google's .npz, BERT with transformers' names.
/// Sources: google-research/big_vision and vision_transformer (models, checkpoint readers), timm 1.0,
/// transformers 4.57.
namespace contrastive::models {

struct ImageTowerOptions {
  /// A `head` becomes the projection to the embedding. It is a classifier, and left out, in most files of one tower.
  bool keep_head = false;
  int64_t heads = 0;        ///< of files that don't tell: PyTorch's; 0: width / 64
  int64_t norm_groups = 0;  ///< BiT: groups of the norms, which no file tells; 0: 32
};

/// An image tower, without the names' `visual.`.
struct ImageTowerWeights {
  VisionConfig config;
  int64_t embed_dim = 0;  ///< width of what the tower gives
  bool quick_gelu = false;
  std::vector<LazyTensor> tensors;
  std::string format;  ///< for messages: "ViT (.npz)"
};

struct TextTowerOptions {
  bool keep_head = true;  ///< a `head` becomes the projection to the embedding
  int64_t heads = 0;      ///< of BERT, which files don't tell; 0: width / 64
};

/// A text tower, without the names' `text.` (open_clip's custom_text).
struct TextTowerWeights {
  TextConfig config;
  int64_t embed_dim = 0;
  std::vector<LazyTensor> tensors;
  std::string format;
};

struct TwoTowerOptions {
  ImageTowerOptions image = {.keep_head = true};
  TextTowerOptions text = {};
};

/// A whole model, under open_clip's names.
struct TwoTowerWeights {
  ModelConfig config;
  std::vector<LazyTensor> tensors;
  std::string format;
};

/// The tensors below `opt/target/` or `params/` where a file has these roots: what Flax's optimisers and big_vision
/// write. Otherwise all but training state (`opt/`, `extra/`, `step`).
CONTRASTIVE_API std::vector<LazyTensor> without_training_state(std::vector<LazyTensor> tensors);

/// Those below a name (`img` for `img/cls` or `img.cls`), without it; of unwrapped tensors.
/// Throws: CheckpointError that lists the names at the root if there are none.
CONTRASTIVE_API std::vector<LazyTensor> select_subtree(std::vector<LazyTensor> tensors, std::string_view name);

/// Whether the tensors are those of both towers, below `img/` and `txt/`.
CONTRASTIVE_API bool has_two_towers(const std::vector<LazyTensor>& tensors);

/// Position tables are those of the file: with a class token [1, 1 + P, D], where it has no own entry a zero one.
/// The image size is what they are made for; BiT's, which has none, is 224.
/// Throws: CheckpointError if the layout isn't known, or a tensor is missing, unknown or of a shape that doesn't fit.
CONTRASTIVE_API ImageTowerWeights image_tower_weights(std::vector<LazyTensor> tensors,
                                                      const ImageTowerOptions& options = {});

/// A BERT's context length is LiT's 16 tokens (at most its positions): no file tells it.
/// Throws: as image_tower_weights.
CONTRASTIVE_API TextTowerWeights text_tower_weights(std::vector<LazyTensor> tensors,
                                                    const TextTowerOptions& options = {});

/// A LiT or SigLIP file: `img/`, `txt/`, `t` (log of the scale), and `b` (bias) or not.
/// Throws: as image_tower_weights; also if the towers' embeddings differ in width.
CONTRASTIVE_API TwoTowerWeights two_tower_weights(std::vector<LazyTensor> tensors, const TwoTowerOptions& options = {});

/// A BERT with transformers' names, and its config.json. The pooler and the heads of pre-training are left out.
/// Throws: ConfigError if the config is no BERT's or a value isn't supported; CheckpointError as text_tower_weights.
CONTRASTIVE_API TextTowerWeights text_tower_from_bert_config(const ConfigNode& config, std::vector<LazyTensor> tensors);

}  // namespace contrastive::models
