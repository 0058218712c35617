#pragma once

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/distributed/process_group.h"

namespace contrastive::loss {

/// What one evaluation of the loss returns; gradients flow through `loss`. The same bits on every rank.
struct ContrastiveLossOutput {
  torch::Tensor loss;      ///< [], fp32 (fp64 for fp64 features), mean over the global batch
  torch::Tensor accuracy;  ///< [], same dtype, in [0, 1]: share of images whose own text is the first of the best
};

/// Symmetric InfoNCE over the global batch: the mean of the image-to-text and the text-to-image cross-entropy.
///
/// Shapes: image_features, text_features [B, D], L2-normalised rows, fp32, bf16 or fp64; logit_scale [] (already
/// exponentiated). Row i of both belongs together. B is this rank's share: every rank passes the same B, and the rows
/// of rank r are rows [r B, (r + 1) B) of the global batch of N = B x ranks pairs; all ranks call it together.
/// Gradients are those of the loss over all N pairs. A feature's is complete; logit_scale gets this rank's share. So
/// gradients of parameters are to be summed over ranks, never averaged, and the sum is that of one process with N
/// pairs. Logits are fp32 (fp64 for fp64 features) also under autocast; memory beyond the features is O(N D) plus one
/// tile of logits. Gradients are computed in the forward pass if any input needs them; there is no second derivative.
/// No gradient of features crosses ranks unless both sides need one: with locked images all ranks fetch the images and
/// keep their texts to themselves (LiT), with locked texts the other way round.
/// An input that is not finite makes the loss NaN. Throws: Error if shapes, dtypes or devices differ, B is 0, or ranks
/// pass different shapes or need gradients of different features; DistributedError. Source: Radford et al. 2021,
/// section 2.3 and figure 3. Deviates: tiles instead of the N x N matrix (same value).
CONTRASTIVE_API ContrastiveLossOutput contrastive_loss(const torch::Tensor& image_features,
                                                       const torch::Tensor& text_features,
                                                       const torch::Tensor& logit_scale,
                                                       const distributed::ProcessGroup& group = {});

}  // namespace contrastive::loss
