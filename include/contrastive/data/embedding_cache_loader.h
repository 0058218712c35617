#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/data/embedding_cache.h"
#include "contrastive/data/source.h"
#include "contrastive/image/transform.h"
#include "contrastive/text/tokenizer.h"

namespace contrastive::data {

struct EmbeddingCacheLoaderOptions {
  int64_t image_size = 224;      ///< pixels, both sides
  image::TrainCropOptions crop;  ///< `none` for a single view
  int64_t num_views = 1;
  int64_t view_seed = 0;
  int64_t context_length = 77;
  int64_t batch_size = 64;  ///< samples
  int64_t samples_per_part = 16384;
  int64_t first_sample = 0;  ///< of a part
  int64_t workers = 2;       ///< decoding threads
  int64_t prefetch_batches = 1;
};

/// Some samples of one part of a cache.
struct EmbeddingCacheBatch {
  int64_t begin = 0;
  int64_t end = 0;
  torch::Tensor images;  ///< [n, V, S, S, 3] uint8, not normalised; black where the sample is missing
  CachedSamples samples;
};

/// Decodes a training set once, in order, and tokenizes all captions, on threads that work ahead of next(). A batch
/// never holds samples of two parts, so that a part's batches are the same wherever the work was interrupted. A sample
/// is missing where a training run would find it bad. To be used by one thread.
class CONTRASTIVE_API EmbeddingCacheLoader {
 public:
  /// Source and tokenizer must outlive the loader. Throws: ConfigError if an option is out of range.
  EmbeddingCacheLoader(const SampleSource& source, const text::Tokenizer& tokenizer,
                       const EmbeddingCacheLoaderOptions& options);
  ~EmbeddingCacheLoader();
  EmbeddingCacheLoader(const EmbeddingCacheLoader&) = delete;
  EmbeddingCacheLoader& operator=(const EmbeddingCacheLoader&) = delete;

  /// The next batch, or nothing after the last.
  std::optional<EmbeddingCacheBatch> next();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace contrastive::data
