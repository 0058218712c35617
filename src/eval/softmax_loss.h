#pragma once

#include <torch/types.h>

namespace contrastive::eval::detail {

/// Sums over samples.
struct SoftmaxSums {
  double loss = 0;    ///< cross-entropy
  double spread = 0;  ///< 1 - |p|^2, with the probabilities p of a sample's classes
};

/// Turns products of classes and samples [C, T] (fp32 or fp64, contiguous) in place into softmax(products + bias) less
/// 1 at the label: the loss's derivative by the scores. Losses of samples that are nearly certain keep their precision.
/// Shapes: bias [C], labels [T] int64, on the same device.
SoftmaxSums softmax_loss(torch::Tensor& products, const torch::Tensor& bias, const torch::Tensor& labels);

}  // namespace contrastive::eval::detail
