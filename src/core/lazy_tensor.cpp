#include "contrastive/core/lazy_tensor.h"

#include <fmt/format.h>

#include "contrastive/core/error.h"

namespace contrastive {

std::vector<LazyTensor> lazy(const NamedTensors& tensors) {
  std::vector<LazyTensor> result;
  result.reserve(tensors.size());
  for (const auto& [name, tensor] : tensors) {
    if (!tensor.defined()) throw CheckpointError(fmt::format("[lazy] tensor '{}' is undefined", name));
    result.push_back({name, tensor.scalar_type(), tensor.sizes().vec(), [tensor = tensor] { return tensor; }});
  }
  return result;
}

}  // namespace contrastive
