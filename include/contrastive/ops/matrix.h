#pragma once

#include <torch/types.h>

#include "contrastive/core/export.h"

/// The three products of a linear layer y = x W^T, without autograd. For fp32 in CPU memory they go to oneDNN, which is
/// faster than the BLAS that LibTorch's own linear layers use; all else is left to LibTorch.
/// Shapes: x [N, K], W [M, K], a gradient of y [N, M]; one dtype.
namespace contrastive::ops {

/// x W^T, [N, M]. A weight in oneDNN's order (pack_weight) is taken, too.
CONTRASTIVE_API torch::Tensor linear_forward(const torch::Tensor& x, const torch::Tensor& weight);

/// The gradient of x: gradient W, [N, K].
CONTRASTIVE_API torch::Tensor linear_input_gradient(const torch::Tensor& gradient, const torch::Tensor& weight);

/// The gradient of W: gradient^T x, [M, K].
CONTRASTIVE_API torch::Tensor linear_weight_gradient(const torch::Tensor& gradient, const torch::Tensor& x);

/// Whether oneDNN has an order of its own for weights of this dtype here: of fp32, and of bf16 where the processor is
/// fit for it.
CONTRASTIVE_API bool can_pack(torch::ScalarType dtype);

/// A weight in CPU memory in oneDNN's order, which saves each product the reordering. An opaque tensor: nothing but
/// linear_forward takes it. Requires can_pack of its dtype.
CONTRASTIVE_API torch::Tensor pack_weight(const torch::Tensor& weight);

}  // namespace contrastive::ops
