#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"

namespace contrastive::eval {

/// Where embeddings are written, and what they are of.
struct FeatureFileOptions {
  std::filesystem::path features;               ///< ends as safetensors file with one tensor, `features` [N, E]
  std::filesystem::path names;                  ///< ends as text with one line a row
  int64_t num_inputs = 0;                       ///< rows to come, those left out included
  int64_t inputs_per_part = 16384;              ///< how much a kill may lose
  std::map<std::string, std::string> settings;  ///< what a rerun must have equal; stored in the file's metadata
};

/// An input without an embedding.
struct SkippedInput {
  std::string name;
  std::string reason;
};

/// What has been written in all, earlier runs included.
struct FeatureFileReport {
  int64_t num_rows = 0;
  int64_t num_skipped = 0;
  std::vector<SkippedInput> first_skipped;  ///< ten at most
};

/// Writes embeddings part by part, so that a run that is killed loses at most one part and a rerun goes on.
///
/// Parts lie in `<features>.parts/part_00000.safetensors`, each written at once or not at all, and are joined and
/// removed by finish(). Equal input gives equal bytes, however often the work was interrupted.
class CONTRASTIVE_API FeatureWriter {
 public:
  /// Finds what earlier runs have written. Throws: ConfigError that lists every setting that differs from theirs or an
  /// option out of range; CheckpointError if a part is damaged.
  explicit FeatureWriter(const FeatureFileOptions& options);

  /// The first input of the part to write next; num_inputs when only finish() is left to do.
  int64_t next_input() const { return next_input_; }

  /// Where that part ends.
  int64_t part_end() const;

  /// Whether the joined file was there from the start.
  bool is_complete() const { return is_complete_; }

  /// Writes the next part: one name a row of `features` (fp32 or fp16 [n, E]), and the inputs of [next_input(),
  /// part_end()) that are left out. Throws: CheckpointError if the write fails; DataError if a name holds a line break.
  void write_part(const torch::Tensor& features, const std::vector<std::string>& names,
                  const std::vector<SkippedInput>& skipped);

  /// Joins the parts, one at a time in memory. Throws: Error if a write fails; the parts are then still there.
  FeatureFileReport finish();

 private:
  std::filesystem::path part_file(int64_t number) const;
  void join_features(int64_t num_rows) const;
  void join_names() const;

  FeatureFileOptions options_;
  std::filesystem::path parts_folder_;
  int64_t next_input_ = 0;
  bool is_complete_ = false;
};

}  // namespace contrastive::eval
