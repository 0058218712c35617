#pragma once

#include <cstdint>

#include <torch/types.h>

// The passes over a tile of logits, for a CPU and for a GPU: what they read and write is shared by both, so that the
// losses are written once. All tensors are of one device and dtype (fp32 or fp64) and contiguous; scale, shift and bias
// are scalars that stay on the device: nothing here waits for a GPU.
namespace contrastive::loss::detail {

/// Products of rows (images or texts) and columns (the others). The logit of a pair is scale * product (+ bias).
struct Tile {
  torch::Tensor products;  ///< [R, C]
  int64_t own;             ///< the own pair of row i is in column own + i, which may lie outside the tile
};

/// Of a tile's rows: what is summed over their logits without the own pair's. Every tile of a row adds to it.
struct RowStatistics {
  torch::Tensor own;     ///< [R], the own pair's logit
  torch::Tensor before;  ///< [R], largest logit in columns before the own pair; kLowest at first
  torch::Tensor after;   ///< [R], largest logit in columns after the own pair; kLowest at first
  torch::Tensor sum;     ///< [R], sum of exp(logit - reference); reference: shift if finite, else max(before, after)
};

/// Of a tile's columns, likewise without own pairs.
struct ColumnStatistics {
  torch::Tensor maximum;  ///< [C], kLowest at first; left alone if shift is finite
  torch::Tensor sum;      ///< [C], sum of exp(logit - reference); reference: shift if finite, else maximum
};

/// Adds a tile to the statistics of its rows and of its columns.
void add_softmax_statistics(const Tile& tile, const torch::Tensor& scale, const torch::Tensor& shift,
                            const RowStatistics& rows, const ColumnStatistics& columns);

/// What exp(logit - reference) is multiplied by to get a pair's share in its row's or column's softmax.
struct SoftmaxShares {
  torch::Tensor reference, factor;  ///< [R] or [C]; the reference is not read if shift is finite
};

/// Replaces products by the pairs' shares in their row plus those in their column; own pairs' by own_weights [R].
void products_to_weights(const Tile& tile, const torch::Tensor& scale, const torch::Tensor& shift,
                         const SoftmaxShares& rows, const SoftmaxShares& columns, const torch::Tensor& own_weights);

/// Of a tile's rows for the sigmoid loss. Every tile of a row adds to it.
struct SigmoidStatistics {
  torch::Tensor own, before, after;  ///< [R], as in RowStatistics
  torch::Tensor loss;                ///< [R], sum of log(1 + exp(-z logit))
  torch::Tensor slope;               ///< [R], its derivative by the bias
};

/// Adds a tile to its rows' statistics and replaces products by the derivatives of the loss by the logits.
void products_to_slopes(const Tile& tile, const torch::Tensor& scale, const torch::Tensor& bias,
                        const SigmoidStatistics& rows);

/// Of a tile's columns: scale * product of the own pair, and the largest in rows before and after that of the own pair;
/// kLowest at first.
struct ColumnMaxima {
  torch::Tensor own, before, after;  ///< [C]
};

/// Adds a tile to its columns' maxima. In a file of its own, as it is made of LibTorch's operations on every device.
void add_column_maxima(const Tile& tile, const torch::Tensor& scale, const ColumnMaxima& maxima);

namespace cuda {  // these throw in a build without CUDA

void add_softmax_statistics(const Tile& tile, const torch::Tensor& scale, const torch::Tensor& shift,
                            const RowStatistics& rows, const ColumnStatistics& columns);
void products_to_weights(const Tile& tile, const torch::Tensor& scale, const torch::Tensor& shift,
                         const SoftmaxShares& rows, const SoftmaxShares& columns, const torch::Tensor& own_weights);
void products_to_slopes(const Tile& tile, const torch::Tensor& scale, const torch::Tensor& bias,
                        const SigmoidStatistics& rows);

}  // namespace cuda
}  // namespace contrastive::loss::detail
