#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/core/lazy_tensor.h"
#include "contrastive/image/transform.h"
#include "contrastive/models/model_config.h"
#include "contrastive/models/position_embeddings.h"
#include "contrastive/text/tokenizer.h"

namespace contrastive::eval {

/// The names of open_clip's published folders.
inline constexpr const char* kConfigFile = "open_clip_config.json";
inline constexpr const char* kWeightsFile = "model.safetensors";

/// Where a model is, and what to make of it.
struct CheckpointRequest {
  /// A run's folder or one of its checkpoints; a folder of open_clip or of transformers (CLIPModel, SiglipModel); or a
  /// weights file: safetensors, of torch.save (also a training checkpoint), OpenAI's TorchScript archive, or a LiT or
  /// SigLIP model of Google's (.npz).
  std::filesystem::path path;

  /// A shipped config's name or a JSON file, for weights that don't come with theirs (or instead of theirs).
  std::string model = {};

  /// The same as a config that was read already.
  std::optional<models::ModelConfig> config = {};

  /// Other sizes than the checkpoint's; its position embeddings are resized. The image's is in pixels.
  std::optional<int64_t> image_size = {};
  std::optional<int64_t> context_length = {};
  models::PositionResize position_resize = models::PositionResize::bicubic;
};

/// A checkpoint, opened: everything that is known about it, and its tensors, not yet read.
struct CheckpointSource {
  std::string format;  ///< what was found, as "OpenAI TorchScript archive"
  models::ModelConfig config;
  image::PreprocessSpec preprocess;
  std::vector<LazyTensor> tensors;  ///< open_clip's names
  std::filesystem::path folder;     ///< where tokenizer files would be; of an .npz the file: see open_tokenizer
};

/// Finds out what stands at the path. The activation can't be told from weights: it is known for this library's and
/// OpenAI's files and for every folder with a config; where a model is named for other weights, the names of published
/// ones decide, and a warning is logged if they don't.
/// Throws: CheckpointError, ConfigError, naming the file; ConfigError if weights are known to have been trained with
/// another activation than the named model's.
CONTRASTIVE_API CheckpointSource open_checkpoint(const CheckpointRequest& request);

/// The tokenizer of a model; `folder`: where a model that doesn't use CLIP's vocabulary has its file, or its .npz
/// weights, beside which the vocabulary lies under the same name (.txt or .model) or a usual one.
/// Throws: ConfigError that names the files looked for.
CONTRASTIVE_API std::shared_ptr<const text::Tokenizer> open_tokenizer(const models::ModelConfig& config,
                                                                      const std::filesystem::path& folder);

/// Copies the files that open_tokenizer looks for, and those of transformers' tokenizers, from one folder to another.
/// Returns: the names of those that were there. Throws: CheckpointError.
CONTRASTIVE_API std::vector<std::string> copy_tokenizer_files(const std::filesystem::path& from,
                                                              const std::filesystem::path& to);

/// Where the config of a model lies: a file, or the name of one under configs/models.
/// Throws: ConfigError that lists the known names.
CONTRASTIVE_API std::filesystem::path find_model_config(const std::string& name_or_file);

}  // namespace contrastive::eval
