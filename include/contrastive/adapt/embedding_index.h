#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"

namespace contrastive::adapt {

/// The embeddings of many images, as `clip_embed images` writes them: folders with features.safetensors (fp16 or fp32
/// rows, mapped) and names.txt (a key a row). Several folders of one model are one index, in their order.
class CONTRASTIVE_API EmbeddingIndex {
 public:
  /// Rows of one folder.
  struct Part {
    std::string folder;
    torch::Tensor features;                    ///< [n, E], mapped from the file
    std::shared_ptr<const std::string> names;  ///< the whole names file
    std::vector<int64_t> name_begin;           ///< [n + 1], where each row's line begins
    int64_t first_row = 0;
  };

  /// Throws: ConfigError without a folder; CheckpointError naming the file that is missing or damaged; DataError if a
  /// folder holds texts or rows that aren't normalised, has another number of names, or is of another model (both
  /// fingerprints are shown).
  explicit EmbeddingIndex(const std::vector<std::filesystem::path>& folders);

  int64_t size() const { return size_; }
  int64_t embed_dim() const { return parts_.front().features.size(1); }
  const std::string& model_sha256() const { return model_sha256_; }
  const std::vector<Part>& parts() const { return parts_; }

  std::string folder(int64_t row) const;
  std::string name(int64_t row) const;

  /// Rows by number, brought to fp32 and normalised again. Shapes: rows [n] int64 to [n, E].
  torch::Tensor features(const torch::Tensor& rows) const;

 private:
  const Part& part_of(int64_t row) const;

  std::vector<Part> parts_;
  int64_t size_ = 0;
  std::string model_sha256_;
};

}  // namespace contrastive::adapt
