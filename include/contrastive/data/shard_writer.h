#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "contrastive/core/export.h"
#include "contrastive/data/classification_set.h"
#include "contrastive/data/source.h"

namespace contrastive::data {

enum class DrawnFormat { png, jpeg };

struct ShardWriterOptions {
  DrawnFormat drawn_format = DrawnFormat::png;  ///< of images that come drawn; encoded ones are copied as they are
  int jpeg_quality = 95;                        ///< in [1, 100]
  uint64_t seed = 0;                            ///< picks one of several captions
  int64_t threads = 1;                          ///< each writes whole shards; 0: one a core, at most 16
  std::function<void(int64_t done, int64_t total)> progress;  ///< in samples; called by one thread at a time
};

/// Writes a source as webdataset shards `<folder>/00000.tar`, `00001.tar`, ...
///
/// A sample's key is its index in 9 digits; its members are the image, a .txt if it has a caption, and a .cls if it has
/// a label. The bytes depend on the source and the options except `threads`. Every shard appears complete or not at
/// all. After an error the shards finished before it remain. Throws: DataError if the folder already holds a .tar file,
/// the source is empty, or a sample can't be read or encoded; ConfigError if an option is out of range; Error if
/// writing fails.
CONTRASTIVE_API void write_shards(const SampleSource& source, const std::filesystem::path& folder,
                                  int64_t samples_per_shard, const ShardWriterOptions& options = {});

/// Writes a set in CLIP_benchmark's layout, as open_classification_folder() reads it: `<folder>/<split>/0.tar`, ...,
/// nshards.txt (last), and the two lists. Lists that are there already have to be equal: the split is added.
/// Throws: as write_shards(); DataError if a list differs, a name or template spans lines, or a sample has no label
/// in range.
CONTRASTIVE_API void write_classification_folder(const ClassificationSet& set, const std::filesystem::path& folder,
                                                 const std::string& split, int64_t samples_per_shard,
                                                 const ShardWriterOptions& options = {});

}  // namespace contrastive::data
