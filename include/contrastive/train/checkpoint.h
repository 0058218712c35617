#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/image/transform.h"
#include "contrastive/models/clip_model.h"
#include "contrastive/optim/optimizer.h"

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

/// What goes into a checkpoint.
struct CheckpointContent {
  RunState state;
  models::ModelConfig config;
  image::PreprocessSpec preprocess;
  NamedTensors weights;
  NamedTensors optimizer;                  ///< Optimizer::state, of the parameters that this process updates
  std::filesystem::path tokenizer_folder;  ///< files in there are copied; may be missing
  std::set<std::string> constant = {};     ///< weights that no later step changes
  std::vector<LazyTensor> absent = {};     ///< the rest of the weights, where this process doesn't hold all
};

/// The content of this moment; its tensors share the model's and the optimiser's memory.
CONTRASTIVE_API CheckpointContent checkpoint_content(const RunState& state, const models::ClipModel& model,
                                                     const image::PreprocessSpec& preprocess,
                                                     const optim::Optimizer& optimizer,
                                                     const std::filesystem::path& tokenizer_folder = {});

/// The file of a rank's part of the optimiser's state: "optimizer.safetensors" if there is one part only, else
/// "optimizer-00001-of-00004.safetensors".
CONTRASTIVE_API std::string optimizer_file_name(int64_t part, int64_t num_parts);

/// The checkpoints of one run: <run>/checkpoints/step_NNNNNNNN/{model.safetensors, open_clip_config.json,
/// optimizer*.safetensors, state.json}, and `latest`, a link to the newest. The first two load in open_clip as they
/// are.
///
/// A checkpoint is written beside its place, flushed and renamed; then `latest` moves; then old ones go. A reader never
/// sees half of one, whatever happens. One process at a time may write.
class CONTRASTIVE_API CheckpointStore {
 public:
  /// `keep` >= 1: how many of the newest stay. Leftovers of interrupted writes are removed.
  CheckpointStore(std::filesystem::path run_directory, int64_t keep);

  /// Has further files written into the folder it is given and returns their SHA-256 by name.
  using OtherFiles = std::function<std::map<std::string, std::string>(const std::filesystem::path& folder)>;

  /// `optimizer_parts`: processes that hold a part of the optimiser's state each, this one the first; the `others`
  /// write theirs. Returns: the checkpoint's folder. Throws: CheckpointError naming the file and the system's reason;
  /// earlier checkpoints stay as they were.
  std::filesystem::path save(const CheckpointContent& content, int64_t optimizer_parts = 1,
                             const OtherFiles& others = {});

  /// The folder of the newest checkpoint, if there is one.
  std::optional<std::filesystem::path> latest() const;

  /// Folders from oldest to newest.
  std::vector<std::filesystem::path> list() const;

 private:
  void write_files(const std::filesystem::path& folder, const CheckpointContent& content, int64_t optimizer_parts,
                   const OtherFiles& others) const;
  void publish(const std::filesystem::path& partial, const std::filesystem::path& folder) const;
  void remove_old() const;

  std::filesystem::path directory_;
  int64_t keep_;
};

/// Reads state.json and checks the SHA-256 of every file it lists.
/// Throws: CheckpointError naming the file that is missing or differs.
CONTRASTIVE_API RunState verify_checkpoint(const std::filesystem::path& folder);

/// verify_checkpoint, then loads the weights and the optimiser's state; an optimiser of some of the model's parameters
/// takes its part, however many processes wrote the state. Throws: CheckpointError.
CONTRASTIVE_API RunState load_checkpoint(const std::filesystem::path& folder, models::ClipModel& model,
                                         optim::Optimizer& optimizer);

/// A state as JSON text, as state.json holds it, and back. Throws: CheckpointError if the text is something else.
CONTRASTIVE_API std::string to_text(const RunState& state);
CONTRASTIVE_API RunState run_state_from_text(const std::string& text);

}  // namespace contrastive::train
