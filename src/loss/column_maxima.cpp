#include <algorithm>

#include <ATen/ATen.h>

#include "loss/tile_kernels.h"
#include "loss/tile_math.h"

namespace contrastive::loss::detail {
namespace {

// Sides of the parts around own pairs where single pairs are told apart, which takes masks: on a GPU a few large ones,
// as every operation has to be launched.
constexpr int64_t kMaskedOnCpu = 64;
constexpr int64_t kMaskedOnGpu = 512;

void take_larger(const torch::Tensor& maxima, const torch::Tensor& logits) {
  maxima.copy_(at::maximum(maxima, logits.amax(0)));
}

/// `own`: the own pair of row i is in column own + i.
void take_larger_of_pairs(const torch::Tensor& logits, int64_t own, const ColumnMaxima& maxima) {
  const auto rows = logits.size(0), columns = logits.size(1);
  const auto row = std::max<int64_t>(0, -own), column = std::max<int64_t>(0, own);
  maxima.own.narrow(0, column, std::min(rows - row, columns - column)).copy_(logits.diagonal(own));
  const auto everywhere = at::ones_like(logits, at::kBool);
  const double lowest = logits.scalar_type() == at::kDouble ? kLowest<double> : static_cast<double>(kLowest<float>);
  // Row i is before the own row of column c if c - i > own.
  take_larger(maxima.before, logits.masked_fill(everywhere.tril(own), lowest));
  take_larger(maxima.after, logits.masked_fill(everywhere.triu(own), lowest));
}

void add_part(const torch::Tensor& logits, int64_t own, const ColumnMaxima& maxima) {
  const auto rows = logits.size(0), columns = logits.size(1);
  if (rows == 0 || columns == 0) return;
  if (own + rows <= 0) return take_larger(maxima.before, logits);
  if (own >= columns) return take_larger(maxima.after, logits);
  if (std::max(rows, columns) <= (logits.is_cpu() ? kMaskedOnCpu : kMaskedOnGpu)) {
    return take_larger_of_pairs(logits, own, maxima);
  }
  for (const bool right : {false, true}) {
    const auto column = right ? columns / 2 : 0, width = right ? columns - columns / 2 : columns / 2;
    const auto part = [&](const torch::Tensor& tensor) { return tensor.narrow(0, column, width); };
    const ColumnMaxima of_part{part(maxima.own), part(maxima.before), part(maxima.after)};
    const auto half = logits.narrow(1, column, width);
    add_part(half.narrow(0, 0, rows / 2), own - column, of_part);
    add_part(half.narrow(0, rows / 2, rows - rows / 2), own + rows / 2 - column, of_part);
  }
}

}  // namespace

void add_column_maxima(const Tile& tile, const torch::Tensor& scale, const ColumnMaxima& maxima) {
  add_part(tile.products * scale, tile.own, maxima);
}

}  // namespace contrastive::loss::detail
