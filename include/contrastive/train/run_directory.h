#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "contrastive/core/export.h"
#include "contrastive/train/run_options.h"

namespace contrastive::train {

/// Where a run goes on from: `auto` (its latest checkpoint, or the start if there is none), `none` (the start; refused
/// if the run has checkpoints), or a checkpoint's folder.
struct ResumeRequest {
  std::string from = "none";
};

/// The folder of one run. One process at a time: a lock is held for the life of the object.
class CONTRASTIVE_API RunDirectory {
 public:
  /// Makes the folder, or opens it again and compares its config.yaml with `options`; keys that can't change what is
  /// learned may differ, and config.yaml is then renewed.
  /// Throws: ConfigError if another kind of run is there, CheckpointError if the checkpoint to resume from can't be
  /// found, Error if the folder can't be made or is in use.
  RunDirectory(const RunOptions& options, const ResumeRequest& resume);
  ~RunDirectory();
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }

  /// The checkpoint to load before the first step, if any.
  const std::optional<std::filesystem::path>& resume_from() const { return resume_from_; }

 private:
  void lock();
  void choose_checkpoint(const ResumeRequest& resume);
  void store_config(const RunOptions& options) const;

  std::filesystem::path path_;
  std::optional<std::filesystem::path> resume_from_;
  int lock_descriptor_ = -1;
};

/// SHA-256 over the options that decide what is learned.
CONTRASTIVE_API std::string training_config_hash(const RunOptions& options);

}  // namespace contrastive::train
