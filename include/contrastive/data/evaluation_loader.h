#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "contrastive/core/export.h"
#include "contrastive/data/batch.h"
#include "contrastive/data/source.h"
#include "contrastive/image/transform.h"

namespace contrastive::data {

/// Every sample of a set once, in order, preprocessed byte for byte as open_clip does for images from shards: converted
/// to RGB first, then resized. The threads work during next() only. To be used by one thread.
///
/// With `world_size` W above 1, a rank gets the batches number rank, rank + W, ...: the same batches as a single rank,
/// so that what is computed for them has the same bits.
class CONTRASTIVE_API EvaluationLoader {
 public:
  /// `source` must outlive the loader. `workers`: decoding threads. With `keep_failures` a sample that can't be read
  /// becomes a black row with its reason in `failures`. Throws: ConfigError if batch_size, workers or the image size is
  /// out of range.
  EvaluationLoader(const SampleSource& source, const image::PreprocessSpec& spec, int64_t batch_size, int64_t workers,
                   int64_t rank = 0, int64_t world_size = 1, bool keep_failures = false);
  ~EvaluationLoader();

  EvaluationLoader(const EvaluationLoader&) = delete;
  EvaluationLoader& operator=(const EvaluationLoader&) = delete;

  /// The next batch, or nothing after the last; labels are -1 where the source has none.
  /// Throws: DataError that names the first bad sample of the batch, unless failures are kept.
  std::optional<LabelledBatch> next();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace contrastive::data
