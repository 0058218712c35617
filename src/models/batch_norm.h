#pragma once

#include <torch/types.h>

#include "contrastive/distributed/process_group.h"

namespace contrastive::models::detail {

struct BatchNormStep {
  torch::Tensor running_mean = {}, running_var = {};  ///< moved, unless both are undefined
  double momentum;
  double epsilon;
  distributed::ProcessGroup group;
};

/// Batch normalisation of a training step. Shapes: x [B, C, H, W] to the same.
/// The statistics are those of all ranks' images. One rank: for fp32, fp64 and bf16 in channels-last order on a CPU
/// they are our own, since torch's kernel for that order sums whole images in fp32, which costs a digit of every
/// feature; elsewhere torch's. More ranks: always our own; each rank's moments are combined in double precision, alike
/// on every rank (Chan, Golub & LeVeque 1979). Gradients are those of the sum of the ranks' results; weight and bias
/// get this rank's share.
torch::Tensor train_batch_norm(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias,
                               const BatchNormStep& step);

/// relu(train_batch_norm(x) + shortcut), in one pass over the numbers where the kernels are our own. Nothing is kept
/// for the backward pass but x and, with a shortcut, the result. Shapes: shortcut as x; undefined: none.
torch::Tensor train_batch_norm_relu(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias,
                                    const BatchNormStep& step, const torch::Tensor& shortcut = {});

/// relu(y + shortcut) in the memory of y; shortcut undefined: none.
torch::Tensor add_relu(torch::Tensor y, const torch::Tensor& shortcut);

}  // namespace contrastive::models::detail
