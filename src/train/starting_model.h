#pragma once

#include <vector>

#include "contrastive/core/lazy_tensor.h"
#include "contrastive/models/clip_model.h"
#include "contrastive/train/run_options.h"

namespace contrastive::train::detail {

/// The model that a run begins with.
struct StartingModel {
  models::ClipModel model{nullptr};

  /// Of a run from cached embeddings: the image tower's tensors that the model lacks, under their whole names; they are
  /// read when a checkpoint is written.
  std::vector<LazyTensor> absent;
};

/// Draws what is random and reads what comes from checkpoints. The random parts are the same with cached embeddings as
/// without. `reads`: whether files are read; other ranks get the values from the one that does. `is_resumed`: all
/// values will be replaced. Throws: CheckpointError, ConfigError.
StartingModel make_starting_model(const RunOptions& options, const models::ModelConfig& config, bool reads,
                                  bool is_resumed);

}  // namespace contrastive::train::detail
