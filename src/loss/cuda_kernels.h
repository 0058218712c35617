#pragma once

#include <cstdint>

// The kernels of tile_kernels_cuda.cpp as raw pointers to a GPU's memory: nvcc needn't see LibTorch. The names are
// those of tile_kernels.h; `stream` is a cudaStream_t. T: float, double.
namespace contrastive::loss::detail::cuda {

/// Rows and columns that one block of threads looks at; what it sums up is merged by a second kernel in a fixed order.
constexpr int kBlockSide = 64;

template <typename T>
struct TilePart {
  T* products;  ///< [rows, columns]
  int64_t rows, columns, own;
  const T *scale, *shift;  ///< sigmoid: shift is the bias
  void* stream;
};

template <typename T>
struct SoftmaxSums {
  T *own, *before, *after, *sum;   ///< [rows]
  T *column_maximum, *column_sum;  ///< [columns]
  T* row_room;                     ///< [3, ceil(columns / kBlockSide), rows]
  T* column_room;                  ///< [2, ceil(rows / kBlockSide), columns]
};

template <typename T>
struct WeightInputs {
  const T *row_reference, *row_factor, *own_weight;  ///< [rows]
  const T *column_reference, *column_factor;         ///< [columns]
};

template <typename T>
struct SigmoidSums {
  T *own, *before, *after, *loss, *slope;  ///< [rows]
};

/// Throw: Error if a kernel can't be launched.
template <typename T>
void launch_softmax_sums(const TilePart<T>& tile, const SoftmaxSums<T>& sums);
template <typename T>
void launch_weights(const TilePart<T>& tile, const WeightInputs<T>& inputs);
template <typename T>
void launch_slopes(const TilePart<T>& tile, const SigmoidSums<T>& sums);

}  // namespace contrastive::loss::detail::cuda
