#include <map>
#include <set>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/distributed/gradient_reducer.h"

namespace contrastive::distributed {
namespace {

constexpr int64_t kBroadcastBytes = int64_t{32} << 20;

using Tensors = std::vector<torch::Tensor>;

/// Sends the tensors, all of one dtype, as one.
void broadcast_together(const Tensors& tensors, const ProcessGroup& group, int64_t root) {
  if (tensors.empty()) return;
  Tensors flat;
  for (const auto& tensor : tensors) flat.push_back(tensor.detach().reshape({-1}));
  const auto joint = at::cat(flat);
  group.broadcast(joint, root);
  int64_t begin = 0;
  for (const auto& tensor : tensors) {
    if (group.rank() != root) tensor.detach().copy_(joint.narrow(0, begin, tensor.numel()).view(tensor.sizes()));
    begin += tensor.numel();
  }
}

/// A number that depends on every bit of a tensor. []
torch::Tensor checksum(const torch::Tensor& tensor) {
  const auto bytes = tensor.detach().contiguous().view({-1});
  const auto words = bytes.view(tensor.element_size() == 8   ? at::kLong
                                : tensor.element_size() == 4 ? at::kInt
                                : tensor.element_size() == 2 ? at::kShort
                                                             : at::kChar);
  return words.sum(at::kLong);
}

}  // namespace

void broadcast_all(const NamedTensors& tensors, const ProcessGroup& group, int64_t root) {
  if (group.is_alone()) return;
  const at::NoGradGuard no_grad;
  std::map<torch::ScalarType, std::pair<Tensors, int64_t>> waiting;
  for (const auto& [name, tensor] : tensors) {
    auto& [members, bytes] = waiting[tensor.scalar_type()];
    members.push_back(tensor);
    bytes += static_cast<int64_t>(tensor.nbytes());
    if (bytes < kBroadcastBytes) continue;
    broadcast_together(members, group, root);
    members.clear();
    bytes = 0;
  }
  for (const auto& [dtype, entry] : waiting) broadcast_together(entry.first, group, root);
}

void require_same_bits(const NamedTensors& tensors, const ProcessGroup& group, const std::string& moment) {
  if (group.is_alone() || tensors.empty()) return;
  Tensors sums;
  for (const auto& [name, tensor] : tensors) sums.push_back(checksum(tensor));
  const auto all = group.all_gather(at::stack(sums).unsqueeze(0)).cpu();  // [W, tensors]
  for (int64_t rank = 1; rank < group.size(); ++rank) {
    const auto differs = all[rank].ne(all[0]);
    if (!differs.any().item<bool>()) continue;
    const auto index = differs.to(at::kInt).argmax().item<int64_t>();
    throw DistributedError(fmt::format("[ranks] {}, {} has other values on rank {} than on rank 0 ({} of {} tensors)",
                                       moment, tensors[static_cast<size_t>(index)].first, rank,
                                       differs.sum().item<int64_t>(), tensors.size()));
  }
}

}  // namespace contrastive::distributed
