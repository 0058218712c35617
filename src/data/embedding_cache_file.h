#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/safetensors.h"
#include "contrastive/data/embedding_cache.h"

// The files of an embedding cache, as writer and reader see them.
namespace contrastive::data::detail {

inline constexpr const char* kCacheFile = "cache.json";        ///< of a complete cache
inline constexpr const char* kUnfinishedFile = "making.json";  ///< of one that is being made
inline constexpr const char* kLockFile = ".lock";

/// "fp16", "bf16", "fp32"
std::string dtype_name(torch::ScalarType dtype);

/// "part_00000.safetensors"
std::string part_name(int64_t number);

int64_t num_parts(const CacheDescription& description);

/// Samples of a part.
int64_t part_size(const CacheDescription& description, int64_t number);

/// Throws: ConfigError naming what is out of range.
void check_description(const CacheDescription& description);

/// The description as text; equal texts mean equal descriptions.
std::string to_text(const CacheDescription& description);

/// "preprocessing: a, now b" for every difference.
std::vector<std::string> differences(const CacheDescription& before, const CacheDescription& now);

/// Throws: DataError naming the file if it isn't what to_text wrote.
CacheDescription description_from_text(std::string_view text, const std::string& file);

/// A complete cache: what cache.json says.
struct CacheManifest {
  struct File {
    int64_t bytes = 0;
    std::string sha256;
  };

  CacheDescription description;
  int64_t num_missing = 0;
  std::vector<File> parts;
};
std::string to_text(const CacheManifest& manifest);
CacheManifest manifest_from_text(std::string_view text, const std::string& file);

/// One part, mapped into memory and checked: every index that it holds lies within what it points into.
class CachePart {
 public:
  /// Throws: DataError naming the file.
  CachePart(const std::filesystem::path& folder, const CacheDescription& description, int64_t number);

  int64_t num_missing() const { return missing_.numel(); }
  int64_t num_captions(int64_t row) const { return caption_begin(row + 1) - caption_begin(row); }
  std::string_view key(int64_t row) const;

  /// Place among the missing ones, or -1.
  int64_t find_missing(int64_t row) const;
  MissingSample missing(int64_t place) const;

  /// [D], of the cache's dtype
  const void* features(int64_t row, int64_t view) const;
  /// [T]
  const int32_t* tokens(int64_t row, int64_t caption) const;
  int64_t length(int64_t row, int64_t caption) const;

  /// Writes a part. Throws: CheckpointError. Returns: the file's SHA-256.
  static std::string write(const std::filesystem::path& folder, const CacheDescription& description, int64_t number,
                           const torch::Tensor& features, const CachedSamples& samples);

 private:
  torch::Tensor take(const SafetensorsFile& file, const char* name, torch::ScalarType dtype, at::IntArrayRef sizes);
  void check_offsets(const char* name, const torch::Tensor& begin, int64_t size) const;
  void check_missing(int64_t first_sample) const;
  void check_lengths() const;
  int64_t caption_begin(int64_t row) const { return caption_begin_.const_data_ptr<int64_t>()[row]; }
  [[noreturn]] void fail(const std::string& message) const;

  std::string file_;
  int64_t first_sample_;
  int64_t context_length_;
  torch::Tensor caption_begin_, key_begin_;  // [n + 1] int64
  torch::Tensor missing_, reason_begin_;     // [m], [m + 1] int64; samples of the set
  torch::Tensor tokens_, lengths_;           // [C, T], [C] int32
  torch::Tensor features_;                   // [n, V, D]
  torch::Tensor keys_, reasons_;             // text
};

}  // namespace contrastive::data::detail
