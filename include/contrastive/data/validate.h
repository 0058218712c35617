#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/data/webdataset_source.h"
#include "contrastive/image/image.h"

namespace contrastive::data {

enum class ShardProblemKind {
  damaged_archive,      ///< the shard's further samples can't be reached
  missing_end_blocks,   ///< the shard may have been cut between two samples
  no_samples,           ///< the shard is an archive without samples
  duplicate_extension,  ///< training refuses the shard
  duplicate_key,        ///< an earlier sample of the same shard has it
  missing_image,
  undecodable_image,
  missing_caption,
  empty_caption,
  malformed_caption,
  missing_label,
  malformed_label,
  oversized_member,
  unreadable,  ///< the file system failed
};

/// "damaged archive" and so on.
CONTRASTIVE_API const char* to_string(ShardProblemKind kind);

struct ShardProblem {
  std::filesystem::path shard;
  std::string key;  ///< of the sample; empty if the shard as a whole is meant
  ShardProblemKind kind;
  std::string reason;  ///< what was expected and what was found
};

struct ValidationReport {
  int64_t samples = 0;  ///< that could be reached
  int64_t images_ok = 0;
  int64_t captions_ok = 0;
  int64_t captions_missing = 0;
  int64_t captions_empty = 0;
  int64_t caption_bytes_max = 0;               ///< of the longest caption, stripped
  double caption_bytes_mean = 0;               ///< over all captions, several of a sample counted each
  std::vector<ShardProblem> problems;          ///< by shard and by place in it; a sample may have several
  std::map<ShardProblemKind, int64_t> counts;  ///< problems of each kind
};

struct ValidationOptions {
  WebdatasetOptions members;  ///< what training will be told; decides what a sample needs
  image::DecodeLimits decoding;
  int64_t threads = 0;                                        ///< 0: one a core, at most 16
  std::function<void(int64_t done, int64_t total)> progress;  ///< in samples; called by one thread at a time
};

/// Reads every sample of the shards and decodes every image, and names all that training would stumble over.
/// A shard that is missing or damaged is a problem of the report, not an error; no index is read or written.
/// Throws: ConfigError if an option is wrong.
CONTRASTIVE_API ValidationReport validate_shards(const std::vector<std::filesystem::path>& shards,
                                                 const ValidationOptions& options = {});

}  // namespace contrastive::data
