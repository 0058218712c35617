#pragma once

#include <vector>

#include <ATen/ATen.h>

#include "contrastive/distributed/process_group.h"

namespace contrastive::eval::detail {

/// The ranks' rows one after the other, where every rank may have another number of them.
inline torch::Tensor gather_rows(const torch::Tensor& rows, const distributed::ProcessGroup& group) {
  if (group.is_alone()) return rows;
  const auto counts = group.all_gather(at::full({1}, rows.size(0), at::kLong));
  const auto largest = counts.max().item<int64_t>();
  auto sizes = rows.sizes().vec();
  sizes[0] = largest;
  auto padded = at::zeros(sizes, rows.options());
  padded.narrow(0, 0, rows.size(0)).copy_(rows);
  if (largest == 0) return padded;
  const auto all = group.all_gather(padded);
  std::vector<torch::Tensor> parts;
  for (int64_t rank = 0; rank < group.size(); ++rank) {
    parts.push_back(all.narrow(0, rank * largest, counts[rank].item<int64_t>()));
  }
  return at::cat(parts);
}

}  // namespace contrastive::eval::detail
