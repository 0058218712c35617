#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"

namespace contrastive {

/// Tensors with names, in file order.
using NamedTensors = std::vector<std::pair<std::string, torch::Tensor>>;

/// A tensor that is made when asked for, so that a converter holds one at a time.
struct LazyTensor {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  std::function<torch::Tensor()> load;
};

/// The same tensors, already there.
CONTRASTIVE_API std::vector<LazyTensor> lazy(const NamedTensors& tensors);

}  // namespace contrastive
