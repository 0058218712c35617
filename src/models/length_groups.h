#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

namespace contrastive::models::detail {

/// Rows that are computed together, up to the same length.
struct LengthGroup {
  int64_t length = 0;
  std::vector<int64_t> rows;
};

/// Shares rows out in groups so that little is computed behind the ends of the shorter ones. The groups are the best
/// ones if a further group costs as much as some hundred tokens. Shapes: lengths [B] int64 in CPU memory, at least 1.
std::vector<LengthGroup> group_by_length(const torch::Tensor& lengths);

}  // namespace contrastive::models::detail
