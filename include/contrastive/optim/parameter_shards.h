#pragma once

#include <cstdint>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/core/lazy_tensor.h"
#include "contrastive/distributed/process_group.h"

namespace contrastive::optim {

/// Which rank updates which parameter, so that each holds the optimiser's state of its own ones only.
///
/// Whole parameters, the largest first, go to the rank that has the least: a rank's share is at most the even share
/// plus one parameter. An optimiser that works value by value (AdamW) gives the same bits as one that holds everything.
/// For a process alone, or with `sharded` false, every rank owns everything and exchange does nothing.
/// Source: Rajbhandari et al. 2020 (ZeRO), section 5.1: sharding of the optimiser's state.
class CONTRASTIVE_API ParameterShards {
 public:
  /// `parameters`: in the same order on every rank. Throws: ConfigError if there are fewer than ranks.
  ParameterShards(NamedTensors parameters, const distributed::ProcessGroup& group, bool sharded);

  /// This rank's, in the order of all.
  const NamedTensors& owned() const { return shards_[own_]; }

  /// Brings every parameter's values from the rank that owns it to the others.
  void exchange() const;

 private:
  distributed::ProcessGroup group_;
  std::vector<NamedTensors> shards_;  ///< by rank; one that holds all if nothing is sharded
  size_t own_ = 0;
};

}  // namespace contrastive::optim
