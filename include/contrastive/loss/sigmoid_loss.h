#pragma once

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/loss/contrastive_loss.h"

namespace contrastive::loss {

/// Pairwise sigmoid loss: -1/B of the sum over all pairs (i, j) of log sigmoid(z_ij (scale <image_i, text_j> + bias)),
/// z_ij = 1 for i = j, else -1.
///
/// Shapes: image_features, text_features [B, D], L2-normalised rows, fp32, bf16 or fp64; logit_scale [] (already
/// exponentiated), logit_bias []. Row i of both belongs together. Logits are fp32 (fp64 for fp64 features) also under
/// autocast; memory beyond the features is O(B D) plus one tile of logits. Gradients of all four inputs are computed in
/// the forward pass if any input needs them; there is no second derivative.
/// Throws: Error if shapes, dtypes or devices differ, or B is 0.
/// Source: Zhai et al. 2023 (SigLIP), arXiv 2303.15343, equation 1. Deviates: tiles instead of the B x B matrix.
CONTRASTIVE_API ContrastiveLossOutput sigmoid_loss(const torch::Tensor& image_features,
                                                   const torch::Tensor& text_features, const torch::Tensor& logit_scale,
                                                   const torch::Tensor& logit_bias);

}  // namespace contrastive::loss
