#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include <torch/csrc/distributed/c10d/Store.hpp>

#include "contrastive/distributed/connect.h"

namespace contrastive::distributed::detail {

/// Puts a cause into the store unless there is one already. Returns the one that is there afterwards.
std::string publish_cause(c10d::Store& store, const std::string& cause);

/// Says to the other ranks that this one lives, learns which of them doesn't and why the job failed.
///
/// A thread writes a sign of life into the store at regular intervals and looks for a published cause. Rank 0 also
/// watches every rank's signs, the others watch rank 0's; a rank without any for longer than the time-out has failed.
/// When a connection broke or an operation took too long, all signs are looked at, and sooner.
/// Only this thread talks to its store connection, so nobody else waits for a store that doesn't answer.
class FailureMonitor {
 public:
  /// `store`: a connection of its own. `hosts_store`: this process serves it, and must not end before others know why.
  FailureMonitor(c10::intrusive_ptr<c10d::Store> store, int64_t rank, int64_t world_size, bool hosts_store,
                 const ConnectOptions& options);
  ~FailureMonitor();
  FailureMonitor(const FailureMonitor&) = delete;
  FailureMonitor& operator=(const FailureMonitor&) = delete;

  /// Why the job failed, as soon as it is known.
  std::optional<std::string> cause() const;

  /// This rank failed; waits a short time for the others to know. Returns the first cause, perhaps another one.
  std::string fail(const std::string& message);

  /// An operation failed on this rank, by the fault of some other: finds out which, within seconds.
  std::string find_cause(const std::string& symptom);

  /// This rank counts its operations, so that the one that hangs can be told from those that wait for it.
  void count_operation() { ++operations_; }

  /// This rank is done and won't be missed.
  void leave();

 private:
  using Clock = std::chrono::steady_clock;
  struct Sign {
    std::string text;
    Clock::time_point changed;
  };

  void run();
  bool beat();
  bool is_leaving() const;
  void publish_requests();
  void look_for_cause();
  void watch_signs();
  void look_at(int64_t rank);
  std::optional<std::string> blame_slowest_rank();
  void know(const std::string& cause);
  void warn_stuck();
  std::string key_of(const char* what, int64_t rank) const;
  void wait_for_others(std::chrono::milliseconds limit);

  c10::intrusive_ptr<c10d::Store> store_;
  int64_t rank_, world_size_;
  bool hosts_store_;
  ConnectOptions options_;
  std::chrono::milliseconds interval_;
  std::atomic<int64_t> operations_{0};

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<std::string> cause_;    ///< of the whole job
  std::optional<std::string> request_;  ///< to be published
  std::optional<std::string> symptom_;  ///< an operation failed here: look closer
  bool own_thread_knows_ = false;
  bool leaving_ = false, left_ = false;

  // Of the thread alone.
  int64_t beats_ = 0;
  std::map<int64_t, Sign> signs_;
  std::map<int64_t, Clock::time_point> last_look_;
  Clock::time_point suspicious_since_{};
  Clock::time_point known_since_{};
  std::thread thread_;
};

}  // namespace contrastive::distributed::detail
