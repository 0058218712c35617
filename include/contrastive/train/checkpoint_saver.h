#pragma once

#include <cstdint>
#include <filesystem>
#include <future>
#include <optional>
#include <string>

#include "contrastive/core/export.h"
#include "contrastive/distributed/process_group.h"
#include "contrastive/train/checkpoint.h"

namespace contrastive::train {

/// How the writing of a checkpoint ended: its folder, or why there is none.
struct SavedCheckpoint {
  int64_t step = 0;
  std::filesystem::path folder;
  std::string error;  ///< empty: all went well
};

struct CheckpointSaverOptions {
  int64_t keep = 3;
  bool background = true;  ///< write in a thread, from a copy of the tensors, while training goes on
  bool sharded = false;    ///< every rank writes its part of the optimiser's state; else rank 0 holds it all
};

/// Writes the checkpoints of a run from all of its ranks: each with one checkpoint at a time under way.
/// Rank 0 writes the weights and publishes; the other ranks do nothing, or with `sharded` write their part in the same
/// folder, which they must see (a shared file system). No rank waits for another while it trains.
class CONTRASTIVE_API CheckpointSaver {
 public:
  /// Throws: CheckpointError if the folder can't be opened (rank 0).
  CheckpointSaver(const std::filesystem::path& run_directory, const distributed::ProcessGroup& group,
                  const CheckpointSaverOptions& options);

  /// Finishes what is under way.
  ~CheckpointSaver();
  CheckpointSaver(const CheckpointSaver&) = delete;
  CheckpointSaver& operator=(const CheckpointSaver&) = delete;

  /// Every rank, at the same step. What was under way must have been fetched by result() or wait().
  void start(const CheckpointContent& content);

  bool is_busy() const { return writing_.valid(); }

  /// What was started last, once it has ended; nothing while it hasn't, and after it was fetched.
  std::optional<SavedCheckpoint> result();

  /// The same, but waits for it.
  std::optional<SavedCheckpoint> wait();

 private:
  SavedCheckpoint write(const CheckpointContent& content);
  std::filesystem::path write_as_first(const CheckpointContent& content);
  void write_own_part(const CheckpointContent& content) const;
  std::map<std::string, std::string> collect_parts(const std::filesystem::path& folder, int64_t step) const;

  std::filesystem::path run_directory_;
  distributed::ProcessGroup group_;
  CheckpointSaverOptions options_;
  std::optional<CheckpointStore> store_;  ///< of rank 0
  std::future<SavedCheckpoint> writing_;
};

}  // namespace contrastive::train
