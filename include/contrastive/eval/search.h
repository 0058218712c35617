#pragma once

#include <cstdint>

#include <torch/types.h>

#include "contrastive/core/export.h"

namespace contrastive::eval {

/// The rows of an index that are nearest to each query, the nearest first.
struct SearchResult {
  torch::Tensor indices;  ///< [Q, k] int64, rows of the index
  torch::Tensor scores;   ///< [Q, k] fp32, falling
};

/// Exact search by inner product (the cosine, for L2-normalised rows). Of equal scores the lower index comes first, a
/// score that is not a number last.
///
/// Shapes: queries [Q, E], index [M, E], floating point of any dtypes, M < 2^32; k is at least 1, and at most M rows
/// are returned. Products are made in fp32 on the device of `queries`, where the results lie as well; `index` may lie
/// elsewhere or be mapped from a file: one tile of it is copied at a time. Memory beyond the arguments and results
/// is bounded (about 100 MB).
/// Throws: Error on other shapes, an empty index or k < 1.
CONTRASTIVE_API SearchResult search(const torch::Tensor& queries, const torch::Tensor& index, int64_t k);

}  // namespace contrastive::eval
