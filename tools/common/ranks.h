#pragma once

#include <string>

#include <torch/types.h>

#include "contrastive/distributed/process_group.h"
#include "contrastive/distributed/rank_environment.h"

namespace contrastive::tools {

/// Meets the other ranks of this program, if there are any; this one's log lines then begin with its rank, and it ends
/// if it can't be reached when the job has failed. With `choose_threads` the machine's cores are shared out to its
/// ranks, unless OMP_NUM_THREADS is set. Throws: DistributedError.
distributed::ProcessGroup meet_other_ranks(const std::string& program, const distributed::RankEnvironment& environment,
                                           torch::Device device, double timeout_seconds, bool choose_threads);

}  // namespace contrastive::tools
