#pragma once

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/distributed/process_group.h"
#include "contrastive/loss/contrastive_loss.h"

namespace contrastive::loss {

/// Pairwise sigmoid loss over the global batch: -1/N of the sum over all pairs (i, j) of
/// log sigmoid(z_ij (scale <image_i, text_j> + bias)), z_ij = 1 for i = j, else -1.
///
/// Shapes: image_features, text_features [B, D], L2-normalised rows, fp32, bf16 or fp64; logit_scale [] (already
/// exponentiated), logit_bias []. Ranks, gradients (logit_bias as logit_scale), precision and memory are as for
/// contrastive_loss.
/// Throws: Error if shapes, dtypes or devices differ, B is 0, or ranks pass different shapes or need gradients of
/// different features; DistributedError.
/// Source: Zhai et al. 2023 (SigLIP), arXiv 2303.15343, equation 1. Deviates: tiles instead of the N x N matrix.
CONTRASTIVE_API ContrastiveLossOutput sigmoid_loss(const torch::Tensor& image_features,
                                                   const torch::Tensor& text_features, const torch::Tensor& logit_scale,
                                                   const torch::Tensor& logit_bias,
                                                   const distributed::ProcessGroup& group = {});

}  // namespace contrastive::loss
