#include "eval/softmax_loss.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "contrastive/core/vector_clones.h"
#include "contrastive/ops/vector_math.h"

namespace contrastive::eval::detail {
namespace {

/// Samples that are done together, side by side in the vector registers.
constexpr int64_t kWidth = 64;
/// Scores that are worth another thread.
constexpr int64_t kScoresPerTask = 1 << 15;

template <typename T>
struct Block {
  T* values;  ///< [C, stride], of which the first `width` columns
  int64_t stride;
  int64_t num_classes;
  int64_t width;
  const T* bias;
  const int64_t* labels;
};

template <typename T>
CONTRASTIVE_INLINE SoftmaxSums softmax_block(const Block<T>& block) {
  std::array<T, kWidth> largest, rest, count, squares, label_score;
  const auto width = block.width;
  for (int64_t i = 0; i < width; ++i) {
    largest[i] = block.values[i] + block.bias[0];
    rest[i] = count[i] = squares[i] = 0;
  }
  for (int64_t c = 0; c < block.num_classes; ++c) {
    T* row = block.values + c * block.stride;
    for (int64_t i = 0; i < width; ++i) {
      row[i] += block.bias[c];
      largest[i] = row[i] > largest[i] ? row[i] : largest[i];
    }
  }
  for (int64_t i = 0; i < width; ++i) label_score[i] = block.values[block.labels[i] * block.stride + i] - largest[i];
  // The largest class is kept out of the sum: beside its 1 the others' small terms would be lost.
  for (int64_t c = 0; c < block.num_classes; ++c) {
    T* row = block.values + c * block.stride;
    for (int64_t i = 0; i < width; ++i) {
      const T difference = row[i] - largest[i];
      const T value = ops::detail::exponential(difference);
      row[i] = value;
      rest[i] += difference == 0 ? T(0) : value;
      count[i] += difference == 0 ? T(1) : T(0);
      squares[i] += value * value;
    }
  }
  std::array<T, kWidth> scale;
  for (int64_t i = 0; i < width; ++i) scale[i] = 1 / (rest[i] + count[i]);
  for (int64_t c = 0; c < block.num_classes; ++c) {
    T* row = block.values + c * block.stride;
    for (int64_t i = 0; i < width; ++i) row[i] *= scale[i];
  }
  SoftmaxSums sums;
  for (int64_t i = 0; i < width; ++i) {
    T& own = block.values[block.labels[i] * block.stride + i];
    const bool is_alone_on_top = label_score[i] == 0 && count[i] == 1;
    own = is_alone_on_top ? -rest[i] * scale[i] : own - 1;
    sums.loss += std::log1p(static_cast<double>(rest[i]) + (static_cast<double>(count[i]) - 1)) -
                 static_cast<double>(label_score[i]);
    sums.spread += 1 - static_cast<double>(squares[i] * scale[i] * scale[i]);
  }
  return sums;
}

CONTRASTIVE_VECTOR_CLONES SoftmaxSums softmax_of(const Block<float>& block) {
  return softmax_block(block);
}
CONTRASTIVE_VECTOR_CLONES SoftmaxSums softmax_of(const Block<double>& block) {
  return softmax_block(block);
}

/// Sums are added up in the order of the blocks, whoever made them.
template <typename T>
SoftmaxSums softmax_loss_on_cpu(torch::Tensor& products, const torch::Tensor& bias, const torch::Tensor& labels) {
  const auto num_columns = products.size(1);
  const auto num_blocks = (num_columns + kWidth - 1) / kWidth;
  std::vector<SoftmaxSums> sums(static_cast<size_t>(num_blocks));
  const auto blocks_per_task = std::max<int64_t>(1, kScoresPerTask / (kWidth * products.size(0)));
  at::parallel_for(0, num_blocks, blocks_per_task, [&](int64_t begin, int64_t end) {
    for (auto i = begin; i < end; ++i) {
      sums[static_cast<size_t>(i)] = softmax_of({.values = products.data_ptr<T>() + i * kWidth,
                                                 .stride = num_columns,
                                                 .num_classes = products.size(0),
                                                 .width = std::min(kWidth, num_columns - i * kWidth),
                                                 .bias = bias.const_data_ptr<T>(),
                                                 .labels = labels.const_data_ptr<int64_t>() + i * kWidth});
    }
  });
  SoftmaxSums total;
  for (const auto& [loss, spread] : sums) {
    total.loss += loss;
    total.spread += spread;
  }
  return total;
}

SoftmaxSums softmax_loss_on_device(torch::Tensor& products, const torch::Tensor& bias, const torch::Tensor& labels) {
  const auto logs = (products + bias.unsqueeze(1)).to(at::kDouble).log_softmax(0);  // [C, T]
  const auto places = labels.unsqueeze(0);
  const auto loss = -logs.gather(0, places).sum();
  auto p = logs.exp();
  const auto spread = 1 - p.square().sum(0);
  p.scatter_add_(0, places, at::full_like(places, -1, p.options()));
  products.copy_(p);
  const auto sums = at::stack({loss, spread.sum()}).cpu();
  return {sums[0].item<double>(), sums[1].item<double>()};
}

}  // namespace

SoftmaxSums softmax_loss(torch::Tensor& products, const torch::Tensor& bias, const torch::Tensor& labels) {
  if (!products.device().is_cpu()) return softmax_loss_on_device(products, bias, labels);
  return products.scalar_type() == at::kFloat ? softmax_loss_on_cpu<float>(products, bias, labels)
                                              : softmax_loss_on_cpu<double>(products, bias, labels);
}

}  // namespace contrastive::eval::detail
