#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/distributed/process_group.h"
#include "contrastive/distributed/rank_environment.h"

namespace contrastive::distributed {

struct ConnectOptions {
  /// How long a rank may not answer, or the others wait for it in an operation, before the job ends.
  std::chrono::milliseconds timeout{600'000};
  /// Called on another thread when the job has failed elsewhere and this rank's own thread hasn't noticed for a while
  /// (it computes, or hangs). May end the process. Empty: nothing happens.
  std::function<void(const std::string& cause)> on_stuck;
};

/// Meets the other ranks and returns the group: this process alone if world_size is 1, Gloo on a CPU, NCCL (and Gloo
/// for CPU tensors) on a GPU. `device` is this rank's. All ranks must call it within the time-out. Throws:
/// DistributedError that names the address and what failed.
CONTRASTIVE_API ProcessGroup connect(const RankEnvironment& environment, torch::Device device,
                                     const ConnectOptions& options = {});

/// Tells the other ranks why this one ends, so that they end with this cause; returns false if another cause was first,
/// which `first_cause` then holds. For the place where a program's exceptions end. Never throws.
CONTRASTIVE_API bool report_failure(const std::string& message, std::string* first_cause = nullptr) noexcept;

/// The GPU of a rank: its local rank modulo the number of visible devices; the CPU as it is.
CONTRASTIVE_API torch::Device device_of_rank(const RankEnvironment& environment, torch::Device device);

/// Compute threads of a rank when nothing else is asked for: the machine's cores shared by its ranks, at least 1.
CONTRASTIVE_API int64_t threads_of_rank(const RankEnvironment& environment, int64_t cores);

/// The meeting point of ranks that this process starts: it outlives each of them, and can tell the others of a failure
/// that a rank can't report itself.
class CONTRASTIVE_API HostedStore {
 public:
  /// Serves on a free port of this machine. Throws: DistributedError.
  HostedStore();
  ~HostedStore();
  HostedStore(const HostedStore&) = delete;
  HostedStore& operator=(const HostedStore&) = delete;

  int port() const;

  /// As the function above, in the name of a rank: returns false if another cause was first.
  bool report_failure(const std::string& message) noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace contrastive::distributed
