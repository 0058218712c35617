#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "contrastive/core/config_node.h"
#include "contrastive/core/export.h"
#include "contrastive/image/transform.h"
#include "contrastive/models/clip_model.h"

namespace contrastive::eval {

/// The names of open_clip's published folders.
inline constexpr const char* kConfigFile = "open_clip_config.json";
inline constexpr const char* kWeightsFile = "model.safetensors";

/// A model with the preprocessing it was trained for.
struct LoadedModel {
  models::ClipModel model{nullptr};
  image::PreprocessSpec preprocess;
};

/// Reads open_clip_config.json and the weights beside it. `path` is such a folder, or the weights file in one.
/// Throws: CheckpointError, ConfigError, naming the file.
CONTRASTIVE_API LoadedModel load_model_folder(const std::filesystem::path& path);

/// Weights without a config beside them: `model` names a shipped config (ViT-B-32) or a JSON file.
CONTRASTIVE_API LoadedModel load_named_model(const std::string& model, const std::filesystem::path& weights);

/// Where the config of a model lies: a file, or the name of one under configs/models.
/// Throws: ConfigError that lists the known names.
CONTRASTIVE_API std::filesystem::path find_model_config(const std::string& name_or_file);

/// The content of open_clip_config.json: {"model_cfg": ..., "preprocess_cfg": ...}.
CONTRASTIVE_API std::string open_clip_config(const models::ModelConfig& config,
                                             const image::PreprocessSpec& preprocess);

/// open_clip's preprocess_cfg both ways; the image size belongs to the model. Throws: ConfigError.
CONTRASTIVE_API ConfigNode to_node(const image::PreprocessSpec& preprocess);
CONTRASTIVE_API image::PreprocessSpec load_preprocess(const ConfigNode& node, int64_t image_size);

}  // namespace contrastive::eval
