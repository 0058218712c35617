#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/core/random.h"
#include "contrastive/data/source.h"
#include "contrastive/image/transform.h"
#include "contrastive/text/tokenizer.h"

// A locked image tower gives an image the same features at every step: a cache holds them for a whole training set,
// with the captions as ids. It is a folder: cache.json says what the rows were made of, part_00000.safetensors and so
// on hold a fixed number of samples each. docs/embedding.md describes the files.
namespace contrastive::data {

/// What the rows of a cache were made of. Equal descriptions give equal files, but for rounding on another machine.
struct CacheDescription {
  int64_t num_samples = 0;
  int64_t samples_per_part = 16384;
  int64_t num_views = 1;      ///< crops of each image; 1 without augmentation
  int64_t view_seed = 0;      ///< what the crops are drawn from
  int64_t feature_width = 0;  ///< D
  torch::ScalarType dtype = torch::kHalf;
  std::string precision;       ///< that the tower computed in: fp32, amp_bf16
  std::string tower;           ///< fingerprint of the image tower, without a projection
  std::string preprocessing;   ///< see cached_preprocessing
  std::string data;            ///< SampleSource::fingerprint()
  std::string data_settings;   ///< SampleSource::settings()
  std::string tokenizer;       ///< see tokenizer_fingerprint
  int64_t context_length = 0;  ///< T
};

/// A sample without a row.
struct MissingSample {
  int64_t sample = 0;
  std::string reason;   ///< its class, as in BadSampleReport
  std::string message;  ///< one line
};

/// Consecutive samples without their features.
struct CachedSamples {
  std::vector<std::string> keys;
  std::vector<int64_t> num_captions;   ///< of each sample; 0 of a missing one
  std::vector<int32_t> tokens;         ///< [C, T], C the sum of num_captions; padded rows
  std::vector<int32_t> lengths;        ///< [C], ids before the padding
  std::vector<MissingSample> missing;  ///< ascending

  CONTRASTIVE_API void append(CachedSamples&& others);
};

/// What a complete cache holds.
struct CacheReport {
  int64_t num_samples = 0;
  int64_t num_missing = 0;
  int64_t bytes = 0;
  std::map<std::string, int64_t> missing_by_reason;
  std::vector<std::string> first_missing;  ///< "KEY: message", ten at most
};

/// Writes a cache part by part, so that a run that is killed loses at most one part and a rerun goes on.
class CONTRASTIVE_API EmbeddingCacheWriter {
 public:
  /// Makes the folder, locks it against other writers, and finds what earlier runs have written.
  /// Throws: ConfigError that lists what differs from what the parts there were made of, if the folder holds other
  /// files, if a value is out of range, or if another process writes this cache; DataError if a part is damaged.
  EmbeddingCacheWriter(std::filesystem::path folder, const CacheDescription& description);
  ~EmbeddingCacheWriter();
  EmbeddingCacheWriter(const EmbeddingCacheWriter&) = delete;
  EmbeddingCacheWriter& operator=(const EmbeddingCacheWriter&) = delete;

  /// The first sample of the part to write next; num_samples when only finish() is left to do.
  int64_t next_sample() const;

  /// Where that part ends.
  int64_t part_end() const;

  int64_t num_missing() const;  ///< in the parts written so far, earlier runs included
  bool is_complete() const;     ///< whether finish() was called, now or earlier

  /// Writes samples [next_sample(), part_end()): beside its place, flushed, renamed.
  /// Shapes: features [n, V, D], any floating point dtype and device; rows of missing samples count for nothing.
  /// Throws: DataError if a feature is not finite, or not in the cache's dtype; CheckpointError if the write fails.
  void write_part(const torch::Tensor& features, const CachedSamples& samples);

  /// Writes cache.json. Throws: Error if that fails.
  CacheReport finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// A complete cache, mapped into memory. Thread-safe.
class CONTRASTIVE_API EmbeddingCache {
 public:
  /// Checks every size, count and offset, but reads no features.
  /// Throws: DataError naming the file, if one is missing, damaged or of another cache, or the cache is not complete.
  explicit EmbeddingCache(std::filesystem::path folder);
  ~EmbeddingCache();
  EmbeddingCache(const EmbeddingCache&) = delete;
  EmbeddingCache& operator=(const EmbeddingCache&) = delete;

  const std::filesystem::path& folder() const;
  const CacheDescription& description() const;
  int64_t size() const { return description().num_samples; }  ///< samples, missing ones included
  int64_t num_missing() const;

  /// Reads all files. Throws: DataError that lists those whose SHA-256 isn't that in cache.json.
  void verify() const;

  /// Below, `sample` is in [0, size()), else DataError is thrown.
  std::string key(int64_t sample) const;
  int64_t num_captions(int64_t sample) const;  ///< 0 if it is missing

  /// Throws: BadSampleError with the recorded reason, if the sample is missing.
  void require_present(int64_t sample) const;

  /// Shapes: out [D]. The sample must be present, the view in [0, num_views).
  void read_features(int64_t sample, int64_t view, std::span<float> out) const;

  /// Shapes: out [T]. Returns: the number of ids before the padding. The caption must be in [0, num_captions(sample)).
  int64_t read_tokens(int64_t sample, int64_t caption, std::span<int32_t> out) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// A cache as a training set: sample i is sample i of the set that it was made of, with features and tokens in place of
/// image and caption. A sample with several captions gets the one that the set's own source would pick. A missing
/// sample is as bad as it was when the cache was made.
class CONTRASTIVE_API EmbeddingCacheSource : public SampleSource {
 public:
  explicit EmbeddingCacheSource(std::shared_ptr<const EmbeddingCache> cache);

  int64_t size() const override { return cache_->size(); }
  int64_t num_views() const override { return cache_->description().num_views; }

  /// View 0.
  void read(int64_t index, RandomStream& random, Sample& sample) const override;
  void read_view(int64_t index, int64_t view, RandomStream& random, Sample& sample) const override;

  std::string key(int64_t index) const override { return cache_->key(index); }

  /// "[cache] sample 000170042"
  std::string describe(int64_t index) const override;

  /// Those of the set it was made of, so that a run can be resumed with or without the cache.
  std::string fingerprint() const override { return cache_->description().data; }
  std::string settings() const override { return cache_->description().data_settings; }

  const EmbeddingCache& cache() const { return *cache_; }

 private:
  std::shared_ptr<const EmbeddingCache> cache_;
};

/// What a run needs its cache to be made of; names as in CacheDescription. An empty text or 0 is not compared.
struct ExpectedCache {
  std::string tower;
  std::string preprocessing;
  std::string data;
  std::string data_settings;
  std::string tokenizer;
  int64_t num_samples = 0;
  int64_t feature_width = 0;
  int64_t context_length = 0;
};

/// Throws: ConfigError that lists everything in which the cache differs from what is expected, with both values.
CONTRASTIVE_API void require_matching_cache(const EmbeddingCache& cache, const ExpectedCache& expected);

/// In words, everything that decides what a tower sees of an image: for CacheDescription::preprocessing. With the crop
/// `none` it is the evaluation preprocessing `spec`, otherwise crops to its size with its mean and std.
CONTRASTIVE_API std::string cached_preprocessing(const image::PreprocessSpec& spec,
                                                 const image::TrainCropOptions& crop);

/// SHA-256 over what a tokenizer does: the text of every id, and the ids of sample texts at this context length.
CONTRASTIVE_API std::string tokenizer_fingerprint(const text::Tokenizer& tokenizer, int64_t context_length);

}  // namespace contrastive::data
