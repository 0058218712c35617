#pragma once

#include <torch/types.h>

#include "contrastive/core/export.h"

namespace contrastive::loss {

/// What one evaluation of the loss returns; gradients flow through `loss`.
struct ContrastiveLossOutput {
  torch::Tensor loss;  ///< [], fp32 (fp64 for fp64 features), mean over the batch
  torch::Tensor
      accuracy;  ///< [], same dtype, in [0, 1]: share of images whose own text is the first of the highest scores
};

/// Symmetric InfoNCE: the mean of the image-to-text and the text-to-image cross-entropy.
///
/// Shapes: image_features, text_features [B, D], L2-normalised rows, fp32, bf16 or fp64; logit_scale [] (already
/// exponentiated). Row i of both belongs together. Logits are fp32 (fp64 for fp64 features) also under autocast; memory
/// beyond the features is O(B D) plus one tile of logits. Gradients are computed in the forward pass if any input needs
/// them; there is no second derivative.
/// Throws: Error if shapes, dtypes or devices differ, or B is 0.
/// Source: Radford et al. 2021, section 2.3 and figure 3. Deviates: tiles instead of the B x B matrix (same value).
CONTRASTIVE_API ContrastiveLossOutput contrastive_loss(const torch::Tensor& image_features,
                                                       const torch::Tensor& text_features,
                                                       const torch::Tensor& logit_scale);

}  // namespace contrastive::loss
