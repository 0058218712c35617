#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <torch/types.h>

#include "contrastive/distributed/process_group.h"

#include "distributed/failure_monitor.h"

namespace contrastive::distributed::detail {

using Backend = c10::intrusive_ptr<c10d::Backend>;

/// The connections of one rank: a backend for each kind of device, a store for values, and the failure monitor.
class Transport {
 public:
  struct Parts {
    int64_t rank = 0, world_size = 1;
    Backend cpu, gpu;  ///< gpu: null on a CPU
    c10::intrusive_ptr<c10d::Store> main_store, value_store;
    std::shared_ptr<FailureMonitor> monitor;
  };

  explicit Transport(Parts parts) : parts_(std::move(parts)) {}

  /// Says good-bye to the others, unless the job failed or an exception passes: then connections are left as they are,
  /// since closing them waits for operations that will never end, and the process is about to.
  ~Transport();

  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  int64_t rank() const { return parts_.rank; }
  int64_t size() const { return parts_.world_size; }

  /// Starts an operation on the backend of the tensor's device: start(backend) returns its c10d::Work.
  template <typename Start>
  std::shared_ptr<Operation> run(const char* name, const torch::Tensor& tensor, const Start& start);

  void set_value(const std::string& key, const std::string& value);
  std::string get_value(const std::string& key);

  /// Ends an operation that failed: finds out why and throws.
  [[noreturn]] void fail(const char* operation, const std::string& reason) const;
  void throw_if_failed() const;

  std::chrono::nanoseconds waited{0};

 private:
  c10d::Backend& backend_of(const torch::Tensor& tensor) const;

  Parts parts_;
  std::mutex value_mutex_;
};

/// One collective operation; keeps its tensors until it is over.
class Operation {
 public:
  Operation(Transport& transport, const char* name, c10::intrusive_ptr<c10d::Work> work, bool blocks)
      : transport_(transport), name_(name), work_(std::move(work)), blocks_(blocks) {}

  void wait();

 private:
  void wait_blocking();

  Transport& transport_;
  const char* name_;
  c10::intrusive_ptr<c10d::Work> work_;
  bool blocks_;  ///< wait() waits for the result itself, not only for its place in a GPU's queue
};

}  // namespace contrastive::distributed::detail
