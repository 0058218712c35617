#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <torch/types.h>

namespace contrastive::data {

/// What one training step gets.
struct Batch {
  torch::Tensor images = {};    ///< [B, S, S, 3] uint8, not normalised; undefined with features
  torch::Tensor features = {};  ///< [B, D] fp32, of a locked image tower, in place of images; undefined with images
  torch::Tensor tokens = {};    ///< [B, T] int64; T = tokens of the longest caption, or the context length
};

/// What one evaluation step gets; the last batch of a set may be smaller.
struct LabelledBatch {
  torch::Tensor images = {};                           ///< [B, S, S, 3] uint8, not normalised
  torch::Tensor labels = {};                           ///< [B] int64, -1 where the source has none
  std::vector<std::vector<int64_t>> label_lists = {};  ///< [B], every class of each image; of multi-label sets
  int64_t first_sample = 0;                            ///< position of the first row in the source
  std::vector<std::string> failures = {};              ///< [B] why a sample can't be read; "": it can
};

}  // namespace contrastive::data
