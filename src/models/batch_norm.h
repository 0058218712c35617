#pragma once

#include <torch/types.h>

namespace contrastive::models::detail {

/// Batch normalisation of a training step, which also moves the running statistics. Shapes: x [B, C, H, W] to the same.
/// For fp32 and fp64 in channels-last order on a CPU with statistics of our own: torch's kernel for that order sums
/// whole images in fp32, which costs a digit of every feature. Elsewhere torch's.
torch::Tensor train_batch_norm(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias,
                               const torch::Tensor& running_mean, const torch::Tensor& running_var, double momentum,
                               double epsilon);

}  // namespace contrastive::models::detail
