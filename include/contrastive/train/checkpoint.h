#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/image/transform.h"
#include "contrastive/models/clip_model.h"
#include "contrastive/optim/adamw.h"

namespace contrastive::train {

/// Where a run stands: everything besides weights and optimiser that the next step depends on. Random draws are keyed
/// by (seed, epoch, sample), so the number of steps done is all there is to know about them.
struct RunState {
  int64_t step = 0;          ///< optimiser steps done
  int64_t samples_seen = 0;  ///< also the position in the endless sequence of epochs
  int64_t seed = 0;
  int64_t world_size = 1;
  int64_t skipped_steps = 0;                       ///< steps whose gradient was not finite, with on_non_finite: skip
  std::map<std::string, int64_t> skipped_samples;  ///< bad samples by reason
  double train_seconds = 0;                        ///< time spent in steps, over all sessions
  std::string data_fingerprint;
  std::string config_hash;
};

/// The checkpoints of one run: <run>/checkpoints/step_NNNNNNNN/{model.safetensors, open_clip_config.json,
/// optimizer.safetensors, state.json}, and `latest`, a link to the newest. The first two load in open_clip as they are.
///
/// A checkpoint is written beside its place, flushed and renamed; then `latest` moves; then old ones go. A reader never
/// sees half of one, whatever happens. One process at a time may write.
class CONTRASTIVE_API CheckpointStore {
 public:
  /// `keep` >= 1: how many of the newest stay. Leftovers of interrupted writes are removed.
  CheckpointStore(std::filesystem::path run_directory, int64_t keep);

  /// Tokenizer files in `tokenizer_folder` are copied into the checkpoint.
  /// Throws: CheckpointError naming the file and the system's reason; earlier checkpoints stay as they were.
  void save(const RunState& state, const models::ClipModel& model, const image::PreprocessSpec& preprocess,
            const optim::AdamW& optimizer, const std::filesystem::path& tokenizer_folder = {});

  /// The folder of the newest checkpoint, if there is one.
  std::optional<std::filesystem::path> latest() const;

  /// Folders from oldest to newest.
  std::vector<std::filesystem::path> list() const;

 private:
  void write_files(const std::filesystem::path& folder, const RunState& state, const models::ClipModel& model,
                   const image::PreprocessSpec& preprocess, const optim::AdamW& optimizer,
                   const std::filesystem::path& tokenizer_folder) const;
  void publish(const std::filesystem::path& partial, const std::filesystem::path& folder) const;
  void remove_old() const;

  std::filesystem::path directory_;
  int64_t keep_;
};

/// Reads state.json and checks the SHA-256 of every file it lists.
/// Throws: CheckpointError naming the file that is missing or differs.
CONTRASTIVE_API RunState verify_checkpoint(const std::filesystem::path& folder);

/// verify_checkpoint, then loads the weights and the optimiser's state. Throws: CheckpointError.
CONTRASTIVE_API RunState load_checkpoint(const std::filesystem::path& folder, models::ClipModel& model,
                                         optim::AdamW& optimizer);

}  // namespace contrastive::train
