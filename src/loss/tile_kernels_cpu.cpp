#include <algorithm>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include "loss/tile_kernels.h"
#include "loss/vector_math.h"

namespace contrastive::loss::detail {
namespace {

// Rows that one task looks at. Sums over a column are taken block by block, whatever the number of threads.
constexpr int64_t kBlockRows = 16;
// Columns that one task merges.
constexpr int64_t kMergedColumns = 256;

/// A block of rows of a tile, and what its pairs are added to.
template <typename T>
struct SoftmaxBlock {
  const T* products;  ///< [rows, columns]
  int64_t rows, columns;
  int64_t own;  ///< the own pair of row i is column own + i
  T scale, shift;
  T *own_logit, *before, *after, *sum;  ///< of the rows
  T *column_maximum, *column_sum;       ///< of this block alone, with room for one vector more than columns

  int64_t first_after(int64_t row) const { return std::clamp<int64_t>(own + row + 1, 0, columns); }
  int64_t end_before(int64_t row) const { return std::clamp<int64_t>(own + row, 0, columns); }
};

/// Logits of `count` columns; lanes without one get the lowest number, whose exp is 0.
template <typename T>
CONTRASTIVE_INLINE void load_logits(typename Lanes<T>::Vector& x, const T* products, int64_t count, T scale) {
  load(x, products, count);
  x *= scale;
  fill_from(x, count, kLowest<T>);
}

/// Maximum, and sum of exp(logit - shift), of columns [begin, end), whose exp is also added to the columns.
template <typename T>
CONTRASTIVE_INLINE ExpSum<T> add_shifted(const SoftmaxBlock<T>& block, const T* row, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  typename L::Vector maximum, sum{}, x, column;
  set_all(maximum, kLowest<T>);
  for (int64_t c = begin; c < end; c += L::kCount) {
    load_logits(x, row + c, end - c, block.scale);
    take_larger<T>(maximum, x);
    x -= block.shift;
    exp_in_place(x);
    sum += x;
    load(column, block.column_sum + c, L::kCount);
    column += x;
    store(block.column_sum + c, column, L::kCount);
  }
  return {largest_of<T>(maximum), sum_of<T>(sum)};
}

template <typename T>
CONTRASTIVE_INLINE T take_maxima(const SoftmaxBlock<T>& block, const T* row, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  typename L::Vector maximum, x, column;
  set_all(maximum, kLowest<T>);
  for (int64_t c = begin; c < end; c += L::kCount) {
    load_logits(x, row + c, end - c, block.scale);
    take_larger<T>(maximum, x);
    load(column, block.column_maximum + c, L::kCount);
    take_larger<T>(column, x);
    store(block.column_maximum + c, column, L::kCount);
  }
  return largest_of<T>(maximum);
}

/// Sum of exp(logit - reference); to the columns it adds exp(logit - their maximum).
template <typename T>
CONTRASTIVE_INLINE T add_relative(const SoftmaxBlock<T>& block, const T* row, int64_t begin, int64_t end, T reference) {
  using L = Lanes<T>;
  typename L::Vector sum{}, x, of_row, column;
  for (int64_t c = begin; c < end; c += L::kCount) {
    load_logits(x, row + c, end - c, block.scale);
    of_row = x - reference;
    exp_in_place(of_row);
    sum += of_row;
    load(column, block.column_maximum + c, L::kCount);
    x -= column;
    exp_in_place(x);
    load(column, block.column_sum + c, L::kCount);
    column += x;
    store(block.column_sum + c, column, L::kCount);
  }
  return sum_of<T>(sum);
}

template <typename T>
CONTRASTIVE_INLINE void merge_into_row(const SoftmaxBlock<T>& block, int64_t row, const RowSum<T>& added) {
  const auto total = merged({block.before[row], block.after[row], block.sum[row]}, added, block.shift);
  block.before[row] = total.before;
  block.after[row] = total.after;
  block.sum[row] = total.sum;
}

template <typename T>
CONTRASTIVE_INLINE void add_block_body(const SoftmaxBlock<T>& block) {
  const bool shifted = std::isfinite(block.shift);
  RowSum<T> found[kBlockRows];
  for (int64_t r = 0; r < block.rows; ++r) {
    const T* row = block.products + r * block.columns;
    const auto end_before = block.end_before(r), first_after = block.first_after(r);
    if (shifted) {
      const auto before = add_shifted(block, row, 0, end_before);
      const auto after = add_shifted(block, row, first_after, block.columns);
      found[r] = {before.reference, after.reference, before.sum + after.sum};
    } else {
      found[r].before = take_maxima(block, row, 0, end_before);
      found[r].after = take_maxima(block, row, first_after, block.columns);
    }
    if (end_before != first_after) block.own_logit[r] = row[end_before] * block.scale;
  }
  for (int64_t r = 0; r < block.rows; ++r) {
    const T* row = block.products + r * block.columns;
    if (!shifted) {
      const T reference = larger_of(found[r].before, found[r].after);
      found[r].sum = add_relative(block, row, 0, block.end_before(r), reference) +
                     add_relative(block, row, block.first_after(r), block.columns, reference);
    }
    merge_into_row(block, r, found[r]);
  }
}

/// One row of weights: exp(logit - shift) (row_factor + column factor).
template <typename T>
CONTRASTIVE_INLINE void shifted_weights_body(T* row, int64_t columns, T scale, T shift, T row_factor,
                                             const T* column_factors) {
  using L = Lanes<T>;
  typename L::Vector x, factor;
  for (int64_t c = 0; c < columns; c += L::kCount) {
    load_logits(x, row + c, columns - c, scale);
    x -= shift;
    exp_in_place(x);
    load(factor, column_factors + c, columns - c);
    x *= factor + row_factor;
    store(row + c, x, columns - c);
  }
}

/// The same with a reference for the row and one for each column.
template <typename T>
CONTRASTIVE_INLINE void relative_weights_body(T* row, int64_t columns, T scale, T row_reference, T row_factor,
                                              const T* column_references, const T* column_factors) {
  using L = Lanes<T>;
  typename L::Vector x, of_row, column;
  for (int64_t c = 0; c < columns; c += L::kCount) {
    load_logits(x, row + c, columns - c, scale);
    of_row = x - row_reference;
    exp_in_place(of_row);
    load(column, column_references + c, columns - c);
    x -= column;
    exp_in_place(x);
    load(column, column_factors + c, columns - c);
    x = x * column + of_row * row_factor;
    store(row + c, x, columns - c);
  }
}

/// Of a part of a row for the sigmoid loss.
template <typename T>
struct SigmoidSum {
  T maximum, loss, slope;
};

/// Columns [begin, end) without the own pair: log(1 + exp(logit)) is summed, its derivative takes the product's place.
template <typename T>
CONTRASTIVE_INLINE SigmoidSum<T> add_sigmoids_body(T* row, int64_t begin, int64_t end, T scale, T bias) {
  using L = Lanes<T>;
  typename L::Vector maximum, loss{}, slope{}, x, small, positive;
  const typename L::Vector zero{};
  set_all(maximum, kLowest<T>);
  for (int64_t c = begin; c < end; c += L::kCount) {
    load(x, row + c, end - c);
    x = x * scale + bias;
    fill_from(x, end - c, kLowest<T>);
    take_larger<T>(maximum, x);
    small = x < zero ? x : -x;
    exp_in_place(small);
    positive = x < zero ? zero : x;
    x = (x < zero ? small : zero + T(1)) / (small + T(1));
    slope += x;
    store(row + c, x, end - c);
    log1p_in_place(small);
    loss += positive + small;
  }
  return {largest_of<T>(maximum), sum_of<T>(loss), sum_of<T>(slope)};
}

CONTRASTIVE_VECTOR_CLONES void add_block(const SoftmaxBlock<float>& block) {
  add_block_body(block);
}
CONTRASTIVE_VECTOR_CLONES void shifted_weights(float* row, int64_t columns, float scale, float shift, float row_factor,
                                               const float* column_factors) {
  shifted_weights_body(row, columns, scale, shift, row_factor, column_factors);
}
CONTRASTIVE_VECTOR_CLONES void relative_weights(float* row, int64_t columns, float scale, float row_reference,
                                                float row_factor, const float* column_references,
                                                const float* column_factors) {
  relative_weights_body(row, columns, scale, row_reference, row_factor, column_references, column_factors);
}
CONTRASTIVE_VECTOR_CLONES SigmoidSum<float> add_sigmoids(float* row, int64_t begin, int64_t end, float scale,
                                                         float bias) {
  return add_sigmoids_body(row, begin, end, scale, bias);
}

void add_block(const SoftmaxBlock<double>& block) {
  add_block_body(block);
}
void shifted_weights(double* row, int64_t columns, double scale, double shift, double row_factor,
                     const double* column_factors) {
  shifted_weights_body(row, columns, scale, shift, row_factor, column_factors);
}
void relative_weights(double* row, int64_t columns, double scale, double row_reference, double row_factor,
                      const double* column_references, const double* column_factors) {
  relative_weights_body(row, columns, scale, row_reference, row_factor, column_references, column_factors);
}
SigmoidSum<double> add_sigmoids(double* row, int64_t begin, int64_t end, double scale, double bias) {
  return add_sigmoids_body(row, begin, end, scale, bias);
}

/// Adds the blocks' sums of a column, in the order of the blocks, to that of the tiles before.
template <typename T>
void merge_column(int64_t column, const std::vector<SoftmaxBlock<T>>& blocks, T shift, T* maximum, T* sum) {
  const bool shifted = std::isfinite(shift);
  ExpSum<T> total{shifted ? shift : maximum[column], sum[column]};
  for (const auto& block : blocks) {
    if (shifted) {
      total.sum += block.column_sum[column];
    } else {
      total = merged(total, {block.column_maximum[column], block.column_sum[column]});
    }
  }
  sum[column] = total.sum;
  if (!shifted) maximum[column] = total.reference;
}

/// The blocks of a tile; their column sums lie in `room`.
template <typename T>
std::vector<SoftmaxBlock<T>> blocks_of(const Tile& tile, T scale, T shift, const RowStatistics& rows,
                                       std::vector<T>& room) {
  const auto count = tile.products.size(0), columns = tile.products.size(1);
  const auto blocks = (count + kBlockRows - 1) / kBlockRows, width = columns + Lanes<T>::kCount;
  room.assign(static_cast<size_t>(2 * blocks * width), 0);
  std::vector<SoftmaxBlock<T>> result;
  for (int64_t i = 0; i < blocks; ++i) {
    const auto row = i * kBlockRows;
    const auto of_row = [row](const torch::Tensor& tensor) { return tensor.data_ptr<T>() + row; };
    T* maximum = room.data() + 2 * i * width;
    std::fill(maximum, maximum + width, kLowest<T>);
    result.push_back({tile.products.const_data_ptr<T>() + row * columns, std::min(kBlockRows, count - row), columns,
                      tile.own + row, scale, shift, of_row(rows.own), of_row(rows.before), of_row(rows.after),
                      of_row(rows.sum), maximum, maximum + width});
  }
  return result;
}

template <typename T>
void add_tile(const Tile& tile, T scale, T shift, const RowStatistics& rows, const ColumnStatistics& columns) {
  std::vector<T> room;
  const auto blocks = blocks_of(tile, scale, shift, rows, room);
  at::parallel_for(0, static_cast<int64_t>(blocks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) add_block(blocks[static_cast<size_t>(i)]);
  });
  T *maximum = columns.maximum.data_ptr<T>(), *sum = columns.sum.data_ptr<T>();
  at::parallel_for(0, tile.products.size(1), kMergedColumns, [&](int64_t begin, int64_t end) {
    for (int64_t column = begin; column < end; ++column) merge_column(column, blocks, shift, maximum, sum);
  });
}

/// Calls work(row, column of its own pair or -1, the row's products) for every row, in parallel.
template <typename T, typename Work>
void for_rows(const Tile& tile, const Work& work) {
  const auto columns = tile.products.size(1);
  T* products = tile.products.data_ptr<T>();
  at::parallel_for(0, tile.products.size(0), kBlockRows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) work(row, tile.own + row, products + row * columns);
  });
}

template <typename T>
void to_weights(const Tile& tile, T scale, T shift, const SoftmaxShares& rows, const SoftmaxShares& columns,
                const torch::Tensor& own_weights) {
  const auto width = tile.products.size(1);
  const auto data = [](const torch::Tensor& tensor) { return tensor.const_data_ptr<T>(); };
  const T *row_references = data(rows.reference), *row_factors = data(rows.factor), *own = data(own_weights);
  const T *column_references = data(columns.reference), *column_factors = data(columns.factor);
  for_rows<T>(tile, [&](int64_t row, int64_t own_column, T* values) {
    if (std::isfinite(shift)) {
      shifted_weights(values, width, scale, shift, row_factors[row], column_factors);
    } else {
      relative_weights(values, width, scale, row_references[row], row_factors[row], column_references, column_factors);
    }
    if (own_column >= 0 && own_column < width) values[own_column] = own[row];
  });
}

template <typename T>
void to_slopes(const Tile& tile, T scale, T bias, const SigmoidStatistics& rows) {
  const auto width = tile.products.size(1);
  T *own = rows.own.data_ptr<T>(), *before = rows.before.data_ptr<T>(), *after = rows.after.data_ptr<T>();
  T *loss = rows.loss.data_ptr<T>(), *slope = rows.slope.data_ptr<T>();
  for_rows<T>(tile, [&](int64_t row, int64_t own_column, T* values) {
    const auto end_before = std::clamp<int64_t>(own_column, 0, width);
    const auto first_after = std::clamp<int64_t>(own_column + 1, 0, width);
    const bool has_own = end_before != first_after;
    const T own_logit = has_own ? values[end_before] * scale + bias : T{0};
    const auto left = add_sigmoids(values, 0, end_before, scale, bias);
    const auto right = add_sigmoids(values, first_after, width, scale, bias);
    before[row] = larger_of(before[row], left.maximum);
    after[row] = larger_of(after[row], right.maximum);
    loss[row] += left.loss + right.loss;
    slope[row] += left.slope + right.slope;
    if (!has_own) return;
    own[row] = own_logit;
    values[own_column] = -sigmoid(-own_logit);
    loss[row] += softplus(-own_logit);
    slope[row] += values[own_column];
  });
}

}  // namespace

void add_softmax_statistics(const Tile& tile, const torch::Tensor& scale, const torch::Tensor& shift,
                            const RowStatistics& rows, const ColumnStatistics& columns) {
  if (tile.products.is_cuda()) return cuda::add_softmax_statistics(tile, scale, shift, rows, columns);
  AT_DISPATCH_FLOATING_TYPES(tile.products.scalar_type(), "add_softmax_statistics", [&] {
    add_tile(tile, *scale.const_data_ptr<scalar_t>(), *shift.const_data_ptr<scalar_t>(), rows, columns);
  });
}

void products_to_weights(const Tile& tile, const torch::Tensor& scale, const torch::Tensor& shift,
                         const SoftmaxShares& rows, const SoftmaxShares& columns, const torch::Tensor& own_weights) {
  if (tile.products.is_cuda()) return cuda::products_to_weights(tile, scale, shift, rows, columns, own_weights);
  AT_DISPATCH_FLOATING_TYPES(tile.products.scalar_type(), "products_to_weights", [&] {
    to_weights(tile, *scale.const_data_ptr<scalar_t>(), *shift.const_data_ptr<scalar_t>(), rows, columns, own_weights);
  });
}

void products_to_slopes(const Tile& tile, const torch::Tensor& scale, const torch::Tensor& bias,
                        const SigmoidStatistics& rows) {
  if (tile.products.is_cuda()) return cuda::products_to_slopes(tile, scale, bias, rows);
  AT_DISPATCH_FLOATING_TYPES(tile.products.scalar_type(), "products_to_slopes", [&] {
    to_slopes(tile, *scale.const_data_ptr<scalar_t>(), *bias.const_data_ptr<scalar_t>(), rows);
  });
}

}  // namespace contrastive::loss::detail
