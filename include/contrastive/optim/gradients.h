#pragma once

#include <string>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/core/safetensors.h"

namespace contrastive::optim {

/// L2 norm over all gradients of the parameters together, as a scalar on their device (no synchronisation), fp32 (fp64
/// for fp64 parameters). A parameter without gradient counts as zero.
CONTRASTIVE_API torch::Tensor global_norm(const NamedTensors& parameters);

/// What to divide gradients of this norm by so that the norm becomes max_norm, if it was above; 1 otherwise.
/// Source: torch.nn.utils.clip_grad_norm_, whose coefficient min(1, max_norm / (norm + 1e-6)) is this one's inverse.
/// Throws: Error unless max_norm > 0.
CONTRASTIVE_API torch::Tensor clip_divisor(const torch::Tensor& norm, double max_norm);

/// The first parameter whose gradient has a NaN or an infinity, with how many of each, as a sentence; "" if there is
/// none.
CONTRASTIVE_API std::string first_non_finite(const NamedTensors& parameters);

}  // namespace contrastive::optim
