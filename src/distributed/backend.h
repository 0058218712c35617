#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "contrastive/distributed/rank_environment.h"

namespace contrastive::distributed::detail {

/// The address of this machine on the network through which it reaches `host`. Throws: DistributedError.
std::string local_address_towards(const std::string& host);

/// Gloo over the interface that reaches the master, or the one that GLOO_SOCKET_IFNAME names.
c10::intrusive_ptr<c10d::Backend> make_gloo_backend(const c10::intrusive_ptr<c10d::Store>& store,
                                                    const RankEnvironment& environment,
                                                    std::chrono::milliseconds timeout);

/// NCCL on the current CUDA device. Throws: DistributedError in a build without CUDA.
c10::intrusive_ptr<c10d::Backend> make_nccl_backend(const c10::intrusive_ptr<c10d::Store>& store,
                                                    const RankEnvironment& environment,
                                                    std::chrono::milliseconds timeout);

}  // namespace contrastive::distributed::detail
