#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "contrastive/core/export.h"

namespace contrastive::distributed {

/// The place of this process among those that a launcher started.
struct RankEnvironment {
  std::string launcher = "none";  ///< what told us: "none", "clip_train", "torchrun", "srun", "mpirun", "environment"
  int64_t rank = 0;
  int64_t world_size = 1;
  int64_t local_rank = 0;        ///< among the ranks of this machine
  int64_t local_world_size = 1;  ///< ranks of this machine
  std::string master_address = "127.0.0.1";
  int port = 29500;
  bool store_is_hosted = false;  ///< the launcher serves the store at that address; otherwise rank 0 does
  int64_t attempt = 0;           ///< how often the launcher restarted the job: keys of the attempts must not mix
};

/// A variable's value, or nothing if it is not set.
using EnvironmentReader = std::function<std::optional<std::string>(const std::string& name)>;

/// Reads what torchrun, srun, mpirun or --nproc left in the environment; a process started by none of them is alone.
/// Throws: ConfigError that names the variable, its value and what was expected.
/// Source: the lookup order is open_clip's (local rank, rank and world size each from the first variable that is set).
CONTRASTIVE_API RankEnvironment read_rank_environment(const EnvironmentReader& variable);

/// The same from this process's environment.
CONTRASTIVE_API RankEnvironment read_rank_environment();

/// The hosts of a SLURM node list such as "gpu[01-03,7],login", in order. Throws: ConfigError that shows the list.
CONTRASTIVE_API std::vector<std::string> expand_node_list(const std::string& list);

}  // namespace contrastive::distributed
