#pragma once

#include <torch/types.h>

namespace contrastive::models::detail {

/// Scaled dot-product self-attention of packed projections. Shapes: qkv [B, T, 3 D], hidden [B, T] bool (keys that no
/// token of their sample sees) or undefined, to [B, T, D]. A sample without a visible key attends to all of them.
torch::Tensor packed_attention(const torch::Tensor& qkv, int64_t heads, bool causal, const torch::Tensor& hidden = {});

/// Attention of one query per sample. Shapes: query [B, D], keys and values [B, T, D], last_key [B] int64 (keys after
/// it are not seen) or undefined, hidden as above, to [B, D].
torch::Tensor single_query_attention(const torch::Tensor& query, const torch::Tensor& keys, const torch::Tensor& values,
                                     int64_t heads, const torch::Tensor& last_key, const torch::Tensor& hidden = {});

}  // namespace contrastive::models::detail
