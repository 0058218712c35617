#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <torch/nn/module.h>
#include <torch/types.h>

#include "contrastive/core/lazy_tensor.h"

namespace contrastive::models::detail {

/// A module's own tensors.
void append_own(const torch::nn::Module& module, const std::string& prefix, NamedTensors& tensors);

/// A module's tensors, then its children's, in registration order: torch's state_dict order.
void append_all(const torch::nn::Module& module, const std::string& prefix, NamedTensors& tensors);

/// Matches the names of a model and of a file, and collects everything that doesn't fit. A missing counter is 0; a
/// scalar of the loss may have the shape [1].
class StateMatcher {
 public:
  /// The sources must outlive the object.
  StateMatcher(const NamedTensors& targets, const std::vector<LazyTensor>& sources,
               const std::function<bool(const std::string&)>& may_be_missing);

  /// Throws: CheckpointError that lists every missing, unexpected and mis-shaped tensor.
  void throw_if_any_problem() const;

  bool fits() const { return problems_.empty(); }

  /// Reads the values into the targets, one tensor at a time.
  void copy() const;

  /// The tensors that belong to a model's names, in its order.
  std::vector<LazyTensor> ordered() const;

  /// Those that were missing and may be.
  const std::vector<std::string>& kept() const { return kept_; }

 private:
  void match(const std::string& name, const torch::Tensor& target);
  void add(const std::string& name, const torch::Tensor& target, const LazyTensor* source);

  const std::function<bool(const std::string&)>& may_be_missing_;
  std::map<std::string, const LazyTensor*> sources_;
  std::vector<std::pair<torch::Tensor, const LazyTensor*>> pairs_;
  std::vector<std::string> names_;  ///< of pairs_
  std::vector<std::string> kept_;
  std::vector<std::string> problems_;
};

}  // namespace contrastive::models::detail
