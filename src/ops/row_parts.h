#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include <ATen/Parallel.h>

namespace contrastive::ops::detail {

/// Rows are shared out in a fixed number of parts, so that sums over them don't depend on the number of threads.
constexpr int64_t kParts = 32;

/// Calls work(first row, end row) for all rows, in parallel.
template <typename Work>
void for_row_parts(int64_t rows, const Work& work) {
  at::parallel_for(0, kParts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) work(rows * part / kParts, rows * (part + 1) / kParts);
  });
}

/// Calls work(first row, end row, sums) for all rows, in parallel, and adds up the sums: [width] for each part, which
/// start at 0.
template <typename T, typename Work>
void sum_row_parts(int64_t rows, int64_t width, T* total, const Work& work) {
  std::vector<T> sums(static_cast<size_t>(kParts * width), T{0});
  at::parallel_for(0, kParts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      work(rows * part / kParts, rows * (part + 1) / kParts, sums.data() + part * width);
    }
  });
  std::fill(total, total + width, T{0});
  for (int64_t part = 0; part < kParts; ++part) {
    for (int64_t i = 0; i < width; ++i) total[i] += sums[static_cast<size_t>(part * width + i)];
  }
}

}  // namespace contrastive::ops::detail
