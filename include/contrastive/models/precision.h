#pragma once

#include <torch/types.h>

#include "contrastive/core/export.h"

namespace contrastive::models {

/// Switches LibTorch's autocast of one device type for the life of the object, on this thread: to bf16, or off.
/// Guards nest; the state before comes back on exit, also by exception. When the outermost guard ends, the cached bf16
/// copies of the weights are dropped: one guard per forward pass, never across an optimiser step. Do not mix forwards
/// with and without gradient in one guard: a weight cached without gradient would be used again.
class CONTRASTIVE_API AutocastGuard {
 public:
  AutocastGuard(torch::DeviceType device_type, bool bf16);
  ~AutocastGuard();
  AutocastGuard(const AutocastGuard&) = delete;
  AutocastGuard& operator=(const AutocastGuard&) = delete;

 private:
  torch::DeviceType device_type_;
  bool enabled_before_;
  torch::ScalarType dtype_before_;
};

/// The dtype matrix products of `x` come out in here: autocast's, if it is on for the device of x, else that of x.
CONTRASTIVE_API torch::ScalarType compute_dtype(const torch::Tensor& x);

}  // namespace contrastive::models
