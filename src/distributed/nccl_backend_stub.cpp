#include "contrastive/core/error.h"

#include "distributed/backend.h"

namespace contrastive::distributed::detail {

c10::intrusive_ptr<c10d::Backend> make_nccl_backend(const c10::intrusive_ptr<c10d::Store>&, const RankEnvironment&,
                                                    std::chrono::milliseconds) {
  throw DistributedError("[connect] ranks on GPUs need NCCL, but this library was built without CUDA");
}

}  // namespace contrastive::distributed::detail
