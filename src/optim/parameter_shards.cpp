#include "contrastive/optim/parameter_shards.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/distributed/gradient_reducer.h"

namespace contrastive::optim {

ParameterShards::ParameterShards(NamedTensors parameters, const distributed::ProcessGroup& group, bool sharded) {
  if (!sharded || group.is_alone()) {
    shards_.push_back(std::move(parameters));
    return;
  }
  if (static_cast<int64_t>(parameters.size()) < group.size()) {
    throw ConfigError(fmt::format("[distributed.shard_optimizer] {} parameters can't be shared out to {} ranks",
                                  parameters.size(), group.size()));
  }
  group_ = group;
  own_ = static_cast<size_t>(group.rank());
  std::vector<size_t> by_size(parameters.size()), owner(parameters.size());
  std::iota(by_size.begin(), by_size.end(), size_t{0});
  std::stable_sort(by_size.begin(), by_size.end(),
                   [&](size_t a, size_t b) { return parameters[a].second.numel() > parameters[b].second.numel(); });
  std::vector<int64_t> load(static_cast<size_t>(group.size()));
  for (const auto i : by_size) {
    owner[i] = static_cast<size_t>(std::min_element(load.begin(), load.end()) - load.begin());
    load[owner[i]] += parameters[i].second.numel();
  }
  shards_.resize(load.size());
  for (size_t i = 0; i < parameters.size(); ++i) shards_[owner[i]].push_back(std::move(parameters[i]));
}

void ParameterShards::exchange() const {
  for (size_t rank = 0; rank < shards_.size(); ++rank) {
    distributed::broadcast_all(shards_[rank], group_, static_cast<int64_t>(rank));
  }
}

}  // namespace contrastive::optim
