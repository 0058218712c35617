#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"

namespace contrastive::distributed {

namespace detail {
class Transport;
class Operation;
}  // namespace detail

enum class ReduceOp { sum, max };

/// A collective operation that was started; its tensors must not be touched before wait() returns.
class CONTRASTIVE_API Pending {
 public:
  /// Nothing to wait for.
  Pending();
  explicit Pending(std::shared_ptr<detail::Operation> operation);

  /// Returns when the result is there (on a GPU: when work that is launched from now on sees it).
  /// Throws: DistributedError with the first cause, if a rank failed or doesn't answer within the time-out.
  void wait();

 private:
  std::shared_ptr<detail::Operation> operation_;
};

/// The ranks that train together, seen from one of them.
///
/// A copy is the same group; a default-constructed one is this process alone, for which every operation is a copy.
/// All ranks must call the same operations in the same order, with tensors of the same shape and dtype. Tensors on the
/// group's GPU go through NCCL, tensors on the CPU through Gloo. To be used by one thread at a time.
/// Throws: every operation throws DistributedError (see Pending::wait).
class CONTRASTIVE_API ProcessGroup {
 public:
  ProcessGroup();
  explicit ProcessGroup(std::shared_ptr<detail::Transport> transport);

  int64_t rank() const;  ///< in [0, size())
  int64_t size() const;
  bool is_alone() const { return size() == 1; }

  /// In place, over all ranks. The result has the same bits on every rank. Tensors must be contiguous (also below).
  void all_reduce(torch::Tensor tensor, ReduceOp op = ReduceOp::sum) const;
  Pending start_all_reduce(torch::Tensor tensor, ReduceOp op = ReduceOp::sum) const;

  /// The ranks' rows one after the other. Shapes: rows [B, ...] to [W B, ...].
  torch::Tensor all_gather(const torch::Tensor& rows) const;
  Pending start_all_gather(torch::Tensor output, const torch::Tensor& rows) const;

  /// This rank's rows of the sum over ranks. Shapes: rows [W B, ...] to [B, ...].
  torch::Tensor reduce_scatter(const torch::Tensor& rows) const;
  Pending start_reduce_scatter(torch::Tensor output, const torch::Tensor& rows) const;

  /// Part r of the rows goes to rank r; what comes back is in the order of the ranks. Shapes: [W B, ...] to the same.
  Pending start_all_to_all(torch::Tensor output, const torch::Tensor& rows) const;

  /// The root's values on every rank, in place.
  void broadcast(torch::Tensor tensor, int64_t root = 0) const;
  Pending start_broadcast(torch::Tensor tensor, int64_t root) const;

  void barrier() const;

  /// Short texts, such as a path: the root's on every rank; every rank's in the order of the ranks.
  std::string broadcast_text(const std::string& text, int64_t root = 0) const;
  std::vector<std::string> all_gather_text(const std::string& text) const;

  /// What ranks leave for each other without meeting: values by key, kept until the job ends. Unlike all of the above
  /// these may be called from any thread. get_value waits until the key is there, however long that takes, unless the
  /// job fails.
  void set_value(const std::string& key, const std::string& value) const;
  std::string get_value(const std::string& key) const;

  /// Time that this rank has spent waiting in the operations above.
  std::chrono::duration<double> waited() const;

 private:
  std::shared_ptr<detail::Transport> transport_;
};

}  // namespace contrastive::distributed
