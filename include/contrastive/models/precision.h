#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include <torch/nn/module.h>
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

/// A parameter in the dtype of the computation. A copy is made for every call, unless an optimiser has promised to
/// renew it (keep): then there is one, made anew when the parameter has changed otherwise. Tensors count their changes;
/// writes through a raw pointer or data() need bump_version(). While it is packed, passes without gradient get one kept
/// copy in oneDNN's order instead, which only ops::linear_forward takes. Thread-safe.
class CONTRASTIVE_API ComputeCopy {
 public:
  /// Without a graph; the parameter itself if it has the dtype already.
  torch::Tensor of(const torch::Tensor& parameter, torch::ScalarType dtype);

  /// From now on the copy is kept.
  void keep();

  /// From now on, until as many calls of unpack, the copy of passes without gradient is kept in oneDNN's order.
  void pack();

  /// Frees the copy, unless others have packed it or an optimiser keeps it.
  void unpack();

  /// For who changes the parameter and knows its new values: the bf16 copy, if one is kept and nothing else holds it,
  /// which then has to be written and confirmed. Undefined otherwise.
  torch::Tensor begin_update(const torch::Tensor& parameter);

  /// The copy has the values that the parameter has now.
  void confirm_update(const torch::Tensor& parameter);

 private:
  std::mutex mutex_;
  torch::Tensor copy_as(const torch::Tensor& source, torch::ScalarType dtype, bool is_packed);

  bool is_kept_ = false;
  std::atomic<int16_t> packs_ = 0;  ///< changed under the mutex
  torch::Tensor copy_;
  const void* source_ = nullptr;
  uint32_t version_ = 0;
};

/// The copies that the modules of a model keep, each with its parameter. They live as long as the model.
CONTRASTIVE_API std::vector<std::pair<torch::Tensor, ComputeCopy*>> compute_copies(const torch::nn::Module& model);

/// For the life of the object, passes of a model without gradient on the CPU take weights that oneDNN has reordered
/// once, not in every product. Costs a copy of the weights, in the dtype of the passes, at the first pass. May be
/// nested; the model must outlive it.
class CONTRASTIVE_API PackedWeights {
 public:
  explicit PackedWeights(const torch::nn::Module& model);
  ~PackedWeights();
  PackedWeights(const PackedWeights&) = delete;
  PackedWeights& operator=(const PackedWeights&) = delete;

 private:
  std::vector<ComputeCopy*> copies_;
};

/// The dtype matrix products of `x` come out in here: autocast's, if it is on for the device of x, else that of x.
CONTRASTIVE_API torch::ScalarType compute_dtype(const torch::Tensor& x);

}  // namespace contrastive::models
