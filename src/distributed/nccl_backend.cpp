#define USE_DISTRIBUTED
#define USE_C10D_NCCL

#include <nccl.h>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "distributed/backend.h"

// Options embeds a structure of NCCL's, whose layout follows its version.
static_assert(NCCL_VERSION_CODE == 22809, "LibTorch 2.11.0 was built with NCCL 2.28.9");

namespace contrastive::distributed::detail {

c10::intrusive_ptr<c10d::Backend> make_nccl_backend(const c10::intrusive_ptr<c10d::Store>& store,
                                                    const RankEnvironment& environment,
                                                    std::chrono::milliseconds timeout) {
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = timeout;
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(store, static_cast<int>(environment.rank),
                                                     static_cast<int>(environment.world_size), options);
}

}  // namespace contrastive::distributed::detail
