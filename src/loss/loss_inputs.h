#pragma once

#include <initializer_list>

#include <torch/types.h>

#include "contrastive/distributed/process_group.h"

namespace contrastive::loss::detail {

/// Which gradients are asked for: of the features, and of scalars such as the scale.
struct NeededGradients {
  bool image = false, text = false, scalars = false;

  bool any() const { return image || text || scalars; }
};

NeededGradients needed_gradients(const torch::Tensor& image, const torch::Tensor& text,
                                 std::initializer_list<torch::Tensor> scalars);

/// Throws: Error, in the name of `operation`, unless both are floating point [B, D] of one dtype and device, B > 0.
void check_features(const char* operation, const torch::Tensor& image, const torch::Tensor& text);

/// Throws: Error unless `value` is a scalar on the features' device.
void check_scalar(const char* operation, const char* name, const torch::Tensor& value, const torch::Tensor& image);

/// All ranks call it, as a rank that went on alone would wait for the others in vain.
/// Throws: Error that names the sizes by rank, unless the features of all ranks have the same shape and the same of
/// them need gradients.
void check_same_on_all_ranks(const char* operation, const torch::Tensor& features, const NeededGradients& needed,
                             const distributed::ProcessGroup& group);

}  // namespace contrastive::loss::detail
