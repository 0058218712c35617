#pragma once

#include <torch/types.h>

#include "contrastive/ops/activation.h"

/// The two halves of a pre-LN transformer block as one node of the graph each. A half keeps its input, what the
/// attention needs, and the values before the activation; normalised rows and activations are computed again in the
/// backward pass, which costs a pass over memory and saves a third of it. Differentiable once.
/// Source: for the blocks, see transformer.h; what to keep follows the recompute levels of Karpathy's llm.c.
namespace contrastive::models::detail {

struct FusedNorm {
  torch::Tensor weight, bias;  ///< [D]
  double eps = 1e-5;
};

/// A linear layer, with its weight as the products take it.
struct FusedLinear {
  torch::Tensor weight, bias;
  torch::Tensor weight_copy;  ///< the weight in the dtype of x; or the weight
};

/// Whether the functions below take this input with parameters like this: CPU memory, and the precision of the pass.
bool can_fuse(const torch::Tensor& x, const torch::Tensor& parameter);

/// x + out_proj(attention(in_proj(norm(x)))). Shapes: x [B, T, D] to the same.
torch::Tensor fused_attention_half(const torch::Tensor& x, const FusedNorm& norm, const FusedLinear& in_proj,
                                   const FusedLinear& out_proj, int64_t heads, bool causal);

/// x + c_proj(activation(c_fc(norm(x)))). Shapes: x [..., D] to the same.
torch::Tensor fused_mlp_half(const torch::Tensor& x, const FusedNorm& norm, const FusedLinear& c_fc,
                             const FusedLinear& c_proj, ops::Activation activation);

}  // namespace contrastive::models::detail
