#include <string>

#include "contrastive/core/error.h"

#include "loss/cuda_kernels.h"
#include "loss/tile_math.h"

namespace contrastive::loss::detail::cuda {
namespace {

#define CONTRASTIVE_CUDA_CHECK(call) check_cuda((call), #call, __FILE__, __LINE__)

void check_cuda(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) return;
  throw Error(std::string("[") + call + "] " + cudaGetErrorString(status) + " (" + file + ":" + std::to_string(line) +
              ")");
}

constexpr int kThreads = 256;
// Threads that share a row (then a column) of a block.
constexpr int kSharers = kThreads / kBlockSide;
constexpr int kShare = kBlockSide / kSharers;

CONTRASTIVE_HOST_DEVICE unsigned blocks_for(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

cudaStream_t stream_of(void* stream) {
  return static_cast<cudaStream_t>(stream);
}

template <typename T>
__device__ T largest_of_sharers(T value) {
  for (int step = 1; step < kSharers; step *= 2) value = larger_of(value, __shfl_xor_sync(~0u, value, step));
  return value;
}

template <typename T>
__device__ T sum_of_sharers(T value) {
  for (int step = 1; step < kSharers; step *= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

/// The logits of one block of a tile, in shared memory; kLowest outside the tile and for own pairs.
template <typename T>
using Logits = T (&)[kBlockSide][kBlockSide + 1];

template <typename T>
__device__ void load_block(const TilePart<T>& tile, T* own_logits, Logits<T> logits) {
  const T scale = *tile.scale;
  for (int i = threadIdx.x; i < kBlockSide * kBlockSide; i += kThreads) {
    const int r = i / kBlockSide, c = i % kBlockSide;
    const int64_t row = int64_t{blockIdx.y} * kBlockSide + r, column = int64_t{blockIdx.x} * kBlockSide + c;
    T logit = kLowest<T>;
    if (row < tile.rows && column < tile.columns) {
      logit = tile.products[row * tile.columns + column] * scale;
      if (column == tile.own + row) {
        own_logits[row] = logit;
        logit = kLowest<T>;
      }
    }
    logits[r][c] = logit;
  }
}

/// Sums each row of a block. With a shift, logits are replaced by exp(logit - shift).
template <typename T>
__device__ void sum_rows(const TilePart<T>& tile, Logits<T> logits, T* room) {
  const int r = threadIdx.x / kSharers, first = threadIdx.x % kSharers * kShare;
  const int64_t row = int64_t{blockIdx.y} * kBlockSide + r;
  const int64_t own = tile.own + row - int64_t{blockIdx.x} * kBlockSide;
  const T shift = *tile.shift;
  RowSum<T> found;
  for (int c = first; c < first + kShare; ++c) {
    T& side = c < own ? found.before : found.after;
    side = larger_of(side, logits[r][c]);
  }
  found.before = largest_of_sharers(found.before);
  found.after = largest_of_sharers(found.after);
  const T reference = reference_of(found, shift);
  for (int c = first; c < first + kShare; ++c) {
    const T share = std::exp(logits[r][c] - reference);
    found.sum += share;
    if (std::isfinite(shift)) logits[r][c] = share;
  }
  found.sum = sum_of_sharers(found.sum);
  if (first != 0 || row >= tile.rows) return;
  const int64_t plane = int64_t{gridDim.x} * tile.rows, place = int64_t{blockIdx.x} * tile.rows + row;
  room[place] = found.before;
  room[plane + place] = found.after;
  room[2 * plane + place] = found.sum;
}

template <typename T>
__device__ void sum_columns(const TilePart<T>& tile, Logits<T> logits, T* room) {
  const int c = threadIdx.x / kSharers, first = threadIdx.x % kSharers * kShare;
  const int64_t column = int64_t{blockIdx.x} * kBlockSide + c;
  const bool shifted = std::isfinite(*tile.shift);
  ExpSum<T> found;
  for (int r = first; r < first + kShare; ++r) found.reference = larger_of(found.reference, logits[r][c]);
  found.reference = largest_of_sharers(found.reference);
  for (int r = first; r < first + kShare; ++r) {
    found.sum += shifted ? logits[r][c] : std::exp(logits[r][c] - found.reference);
  }
  found.sum = sum_of_sharers(found.sum);
  if (first != 0 || column >= tile.columns) return;
  const int64_t plane = int64_t{gridDim.y} * tile.columns, place = int64_t{blockIdx.y} * tile.columns + column;
  room[place] = found.reference;
  room[plane + place] = found.sum;
}

template <typename T>
__global__ void sum_blocks(TilePart<T> tile, SoftmaxSums<T> sums) {
  __shared__ T logits[kBlockSide][kBlockSide + 1];
  load_block<T>(tile, sums.own, logits);
  __syncthreads();
  sum_rows<T>(tile, logits, sums.row_room);
  __syncthreads();
  sum_columns<T>(tile, logits, sums.column_room);
}

template <typename T>
__global__ void merge_rows(TilePart<T> tile, SoftmaxSums<T> sums) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= tile.rows) return;
  const int64_t blocks = blocks_for(tile.columns, kBlockSide), plane = blocks * tile.rows;
  RowSum<T> total{sums.before[row], sums.after[row], sums.sum[row]};
  for (int64_t block = 0; block < blocks; ++block) {
    const T* found = sums.row_room + block * tile.rows + row;
    total = merged(total, {found[0], found[plane], found[2 * plane]}, *tile.shift);
  }
  sums.before[row] = total.before;
  sums.after[row] = total.after;
  sums.sum[row] = total.sum;
}

template <typename T>
__global__ void merge_columns(TilePart<T> tile, SoftmaxSums<T> sums) {
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= tile.columns) return;
  const bool shifted = std::isfinite(*tile.shift);
  const int64_t blocks = blocks_for(tile.rows, kBlockSide), plane = blocks * tile.columns;
  ExpSum<T> total{shifted ? *tile.shift : sums.column_maximum[column], sums.column_sum[column]};
  for (int64_t block = 0; block < blocks; ++block) {
    const T* found = sums.column_room + block * tile.columns + column;
    total = merged(total, {shifted ? *tile.shift : found[0], found[plane]});
  }
  if (!shifted) sums.column_maximum[column] = total.reference;
  sums.column_sum[column] = total.sum;
}

// Rows that one block of threads turns into weights; its threads lie along the columns.
constexpr int kWeightRows = 16;

template <typename T>
__global__ void to_weights(TilePart<T> tile, WeightInputs<T> inputs) {
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= tile.columns) return;
  const T scale = *tile.scale, shift = *tile.shift;
  const bool shifted = std::isfinite(shift);
  const T reference = inputs.column_reference[column], factor = inputs.column_factor[column];
  const int64_t first = int64_t{blockIdx.y} * kWeightRows;
  for (int64_t row = first; row < first + kWeightRows && row < tile.rows; ++row) {
    T& value = tile.products[row * tile.columns + column];
    const T logit = value * scale;
    if (column == tile.own + row) {
      value = inputs.own_weight[row];
    } else if (shifted) {
      value = std::exp(logit - shift) * (inputs.row_factor[row] + factor);
    } else {
      value =
          std::exp(logit - inputs.row_reference[row]) * inputs.row_factor[row] + std::exp(logit - reference) * factor;
    }
  }
}

/// What one thread, then all threads of a row, find.
template <typename T>
struct RowSlopes {
  T before = kLowest<T>, after = kLowest<T>, loss = 0, slope = 0;

  __device__ void add(const RowSlopes& other) {
    before = larger_of(before, other.before);
    after = larger_of(after, other.after);
    loss += other.loss;
    slope += other.slope;
  }
};

template <typename T>
__device__ RowSlopes<T> to_slopes_of_row(const TilePart<T>& tile, int64_t row, T* own_logits) {
  const T scale = *tile.scale, bias = *tile.shift;
  const int64_t own = tile.own + row;
  RowSlopes<T> found;
  for (int64_t column = threadIdx.x; column < tile.columns; column += kThreads) {
    T& value = tile.products[row * tile.columns + column];
    const T logit = value * scale + bias;
    if (column == own) {
      own_logits[row] = logit;
    } else {
      T& side = column < own ? found.before : found.after;
      side = larger_of(side, logit);
    }
    const T wrong = column == own ? -logit : logit;
    value = column == own ? -sigmoid(wrong) : sigmoid(wrong);
    found.loss += softplus(wrong);
    found.slope += value;
  }
  return found;
}

template <typename T>
__global__ void to_slopes(TilePart<T> tile, SigmoidSums<T> sums) {
  __shared__ T room[4][kThreads];
  const int64_t row = blockIdx.x;
  RowSlopes<T> found = to_slopes_of_row(tile, row, sums.own);
  for (int active = kThreads; active > 0; active /= 2) {
    if (threadIdx.x < active) {
      if (active < kThreads) {
        const int other = threadIdx.x + active;
        found.add({room[0][other], room[1][other], room[2][other], room[3][other]});
      }
      room[0][threadIdx.x] = found.before;
      room[1][threadIdx.x] = found.after;
      room[2][threadIdx.x] = found.loss;
      room[3][threadIdx.x] = found.slope;
    }
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  sums.before[row] = larger_of(sums.before[row], found.before);
  sums.after[row] = larger_of(sums.after[row], found.after);
  sums.loss[row] += found.loss;
  sums.slope[row] += found.slope;
}

}  // namespace

template <typename T>
void launch_softmax_sums(const TilePart<T>& tile, const SoftmaxSums<T>& sums) {
  const dim3 blocks(blocks_for(tile.columns, kBlockSide), blocks_for(tile.rows, kBlockSide));
  sum_blocks<<<blocks, kThreads, 0, stream_of(tile.stream)>>>(tile, sums);
  CONTRASTIVE_CUDA_CHECK(cudaGetLastError());
  merge_rows<<<blocks_for(tile.rows, kThreads), kThreads, 0, stream_of(tile.stream)>>>(tile, sums);
  CONTRASTIVE_CUDA_CHECK(cudaGetLastError());
  merge_columns<<<blocks_for(tile.columns, kThreads), kThreads, 0, stream_of(tile.stream)>>>(tile, sums);
  CONTRASTIVE_CUDA_CHECK(cudaGetLastError());
}

template <typename T>
void launch_weights(const TilePart<T>& tile, const WeightInputs<T>& inputs) {
  const dim3 blocks(blocks_for(tile.columns, kThreads), blocks_for(tile.rows, kWeightRows));
  to_weights<<<blocks, kThreads, 0, stream_of(tile.stream)>>>(tile, inputs);
  CONTRASTIVE_CUDA_CHECK(cudaGetLastError());
}

template <typename T>
void launch_slopes(const TilePart<T>& tile, const SigmoidSums<T>& sums) {
  to_slopes<<<static_cast<unsigned>(tile.rows), kThreads, 0, stream_of(tile.stream)>>>(tile, sums);
  CONTRASTIVE_CUDA_CHECK(cudaGetLastError());
}

template void launch_softmax_sums(const TilePart<float>&, const SoftmaxSums<float>&);
template void launch_softmax_sums(const TilePart<double>&, const SoftmaxSums<double>&);
template void launch_weights(const TilePart<float>&, const WeightInputs<float>&);
template void launch_weights(const TilePart<double>&, const WeightInputs<double>&);
template void launch_slopes(const TilePart<float>&, const SigmoidSums<float>&);
template void launch_slopes(const TilePart<double>&, const SigmoidSums<double>&);

}  // namespace contrastive::loss::detail::cuda
