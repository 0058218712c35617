#pragma once

#include <cstdint>
#include <string>

namespace contrastive::tools {

/// Starts `ranks` copies of this program with the same arguments and waits for all of them. A copy finds its rank in
/// its environment (distributed::read_rank_environment); only rank 0 has this program's stdin.
///
/// SIGTERM and SIGUSR1 are passed on to the ranks, SIGINT as SIGTERM; a second SIGINT kills them. Once a rank has
/// failed the others have CONTRASTIVE_GRACE_SECONDS (default 10) to end by themselves, then they are killed. No rank
/// outlives this program.
/// Returns: 0 if all ranks did, else the exit code of the first one that failed, 1 if a signal killed it.
/// Throws: Error if the ranks can't be started. Must be called before this program starts a thread.
int run_local_ranks(const std::string& program, int64_t ranks, char** argv);

/// To be called first in a program: if run_local_ranks started it, it ends when that process ends, however that
/// happens.
void follow_parent();

}  // namespace contrastive::tools
