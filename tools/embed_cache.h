#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace contrastive::tools {

/// `clip_embed cache`: empty texts and 0 mean what the training config says.
struct CacheArguments {
  std::string config;
  std::vector<std::string> overrides;
  std::string output;
  std::string dtype = "fp16";
  std::string precision;
  std::string on_bad_sample;
  int64_t views = 1;
  int64_t batch_size = 0;
  int64_t workers = 0;
  int64_t part_rows = 16384;
};

/// Writes the embeddings of a run's training set by its locked image tower, for image.cache of that run.
/// Returns: the program's exit code.
int embed_cache(const CacheArguments& arguments);

}  // namespace contrastive::tools
