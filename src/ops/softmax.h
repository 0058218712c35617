#pragma once

#include <torch/types.h>

#include "contrastive/ops/attention.h"

namespace contrastive::ops::detail {

/// The softmax of every row, over the keys that its query sees; 0 for the others.
/// Shapes: scores [B H, T, T], hidden bool [B, T] or undefined.
void softmax_in_place(torch::Tensor& scores, const AttentionShape& shape, const torch::Tensor& hidden);

/// Turns gradients of the probabilities into those of the scores. Shapes: [B H, T, T].
void softmax_backward_in_place(torch::Tensor& gradient, const torch::Tensor& probabilities);

}  // namespace contrastive::ops::detail
