#pragma once

#include <functional>
#include <string>

#include "contrastive/core/export.h"
#include "contrastive/eval/checkpoint_source.h"
#include "contrastive/image/transform.h"
#include "contrastive/models/clip_model.h"

namespace contrastive::eval {

/// A model with the preprocessing it was trained for, in evaluation mode.
struct LoadedModel {
  models::ClipModel model{nullptr};
  image::PreprocessSpec preprocess;
  std::filesystem::path folder;  ///< where tokenizer files would be
};

/// Opens a checkpoint (see CheckpointRequest) and reads its weights, one tensor at a time: memory stays near the
/// model's. `may_be_missing`: names of tensors that may be missing; they are drawn at random, and a warning names them.
/// Throws: CheckpointError, ConfigError, naming the file and every tensor that does not fit.
CONTRASTIVE_API LoadedModel load_model(const CheckpointRequest& request,
                                       const std::function<bool(const std::string&)>& may_be_missing = {});

/// The same for a path alone.
CONTRASTIVE_API LoadedModel load_model(const std::filesystem::path& path);

/// The content of open_clip_config.json: {"model_cfg": ..., "preprocess_cfg": ...}.
CONTRASTIVE_API std::string open_clip_config(const models::ModelConfig& config,
                                             const image::PreprocessSpec& preprocess);

/// Writes model.safetensors with the model's tensors and, in its header, its activation. Returns: the file's SHA-256.
CONTRASTIVE_API std::string write_weights(const std::filesystem::path& file, const models::ModelConfig& config,
                                          const std::vector<LazyTensor>& tensors);

}  // namespace contrastive::eval
