#pragma once

#include <torch/types.h>

#include "contrastive/core/export.h"

/// The three products of a linear layer y = x W^T, without autograd. For fp32 in CPU memory they go to oneDNN, which is
/// faster than the BLAS that LibTorch's own linear layers use; all else is left to LibTorch.
/// Shapes: x [N, K], W [M, K], a gradient of y [N, M]; one dtype.
namespace contrastive::ops {

/// x W^T, [N, M].
CONTRASTIVE_API torch::Tensor linear_forward(const torch::Tensor& x, const torch::Tensor& weight);

/// The gradient of x: gradient W, [N, K].
CONTRASTIVE_API torch::Tensor linear_input_gradient(const torch::Tensor& gradient, const torch::Tensor& weight);

/// The gradient of W: gradient^T x, [M, K].
CONTRASTIVE_API torch::Tensor linear_weight_gradient(const torch::Tensor& gradient, const torch::Tensor& x);

}  // namespace contrastive::ops
