#pragma once

#include <torch/types.h>

#include "contrastive/core/export.h"

/// Multi-head self-attention between the projections of a block, without autograd, for tensors as in elementwise.h.
namespace contrastive::ops {

struct AttentionShape {
  int64_t batch = 0, tokens = 0, heads = 0;
  bool causal = false;
};

/// What the backward pass needs, H heads of width E = D / H.
struct AttentionState {
  torch::Tensor packed;            ///< q (times 1 / sqrt(E) with probabilities), k, v: [3, B, H, T, E]
  torch::Tensor probabilities;     ///< [B H, T, T]; of short rows
  torch::Tensor result, log_sums;  ///< ATen's flash attention, of long rows: [B, H, T, E], [B, H, T]
};

struct AttentionResult {
  torch::Tensor values;  ///< [B T, D]
  AttentionState state;
};

/// softmax(q k^T / sqrt(E)) v of every head. Short rows are computed by batched matrix products, long ones by ATen's
/// flash attention, whatever is faster both ways together.
/// Args: qkv, [B T, 3 D]: rows of q, k, v without their bias; bias, [3 D], or undefined for none; hidden, bool [B, T],
/// or undefined: keys that no query sees (at least one of each sample must be seen), not with causal.
CONTRASTIVE_API AttentionResult attention(const torch::Tensor& qkv, const torch::Tensor& bias,
                                          const AttentionShape& shape, const torch::Tensor& hidden = {});

struct AttentionGradient {
  torch::Tensor qkv;   ///< [B T, 3 D]
  torch::Tensor bias;  ///< [3 D]
};

/// Args: gradient, of the values, [B T, D].
CONTRASTIVE_API AttentionGradient attention_backward(const torch::Tensor& gradient, const AttentionShape& shape,
                                                     const AttentionState& state, const torch::Tensor& hidden = {});

}  // namespace contrastive::ops
