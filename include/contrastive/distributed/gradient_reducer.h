#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>

#include "contrastive/core/export.h"
#include "contrastive/core/lazy_tensor.h"
#include "contrastive/distributed/process_group.h"

namespace contrastive::distributed {

struct ReducerOptions {
  int64_t first_bucket_bytes = int64_t{1} << 20;  ///< small, so that sending starts early
  int64_t bucket_bytes = int64_t{25} << 20;
  bool bf16 = false;  ///< gradients travel as bf16; they are added up in fp32 and rounded once more on the way back
};

/// Adds up the gradients of all ranks while the backward pass still runs.
///
/// Gradients are views of flat buffers, one a bucket, in the reverse order of the parameters, which is about that of
/// the backward pass. A bucket is sent when the last of its gradients is there; buckets are sent in the same order on
/// every rank. What comes out is the sum over ranks, with the same bits on each: losses whose gradients are shares of
/// the whole batch's need no division. For a process alone everything is left to autograd.
///
/// A step: start_step, backward passes, arm, the last backward pass, finish.
/// Parameters that the loss doesn't depend on must not be given: finish names them. To be used by one thread.
class CONTRASTIVE_API GradientReducer {
 public:
  /// `parameters`: floating point, on the group's device; in the same order on every rank.
  GradientReducer(const NamedTensors& parameters, const ProcessGroup& group, const ReducerOptions& options = {});
  ~GradientReducer();
  GradientReducer(const GradientReducer&) = delete;
  GradientReducer& operator=(const GradientReducer&) = delete;

  /// Sets all gradients to zero.
  void start_step();

  /// The backward pass that comes now is the last one of the step; the gradients of the parameters in `complete` got
  /// their last value before.
  void arm(const std::set<std::string>& complete = {});

  /// Waits for the sums. Throws: Error that names parameters without a gradient; DistributedError.
  void finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The same values on all ranks: the root's, in place. Tensors of one dtype travel together.
CONTRASTIVE_API void broadcast_all(const NamedTensors& tensors, const ProcessGroup& group, int64_t root = 0);

/// Throws: DistributedError that names the first tensor whose bits are not the same on all ranks, and the ranks, on
/// every rank. `moment`: when that was, for the message.
CONTRASTIVE_API void require_same_bits(const NamedTensors& tensors, const ProcessGroup& group,
                                       const std::string& moment);

}  // namespace contrastive::distributed
