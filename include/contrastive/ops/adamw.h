#pragma once

#include <optional>

#include <torch/types.h>

#include "contrastive/core/export.h"

namespace contrastive::ops {

/// The numbers of one step of AdamW for one parameter.
struct AdamWStep {
  double lr = 0;
  double beta1 = 0.9, beta2 = 0.999;
  double eps = 1e-8;
  double decay = 0;         ///< a step takes lr * decay * value off each value
  double step = 1;          ///< counted from 1
  double grad_divisor = 1;  ///< what gradients are divided by
};

/// One step in one pass over memory, for contiguous fp32 tensors of one shape in CPU memory. The values are changed in
/// place, without a graph; `bf16_copy`, if defined, gets their rounded values. The gradient is only read.
/// Source: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", as torch.optim.AdamW computes it.
CONTRASTIVE_API void adamw_step(const torch::Tensor& parameter, const torch::Tensor& gradient,
                                const torch::Tensor& exp_avg, const torch::Tensor& exp_avg_sq,
                                const torch::Tensor& bf16_copy, const AdamWStep& step);

}  // namespace contrastive::ops
