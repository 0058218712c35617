#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace contrastive::data::detail {

/// What BatchWorkers fills: numbered batches of numbered items, each batch in one of a few slots.
class BatchJob {
 public:
  virtual ~BatchJob() = default;

  /// At least 1.
  virtual int64_t num_items(int64_t batch) const = 0;

  /// Called before the items of a batch, one batch at a time and in order.
  virtual void begin(int64_t batch, int64_t slot) = 0;

  /// Fills one item. Called by several threads at once; `worker` numbers them from 0.
  virtual void fill(int64_t batch, int64_t slot, int64_t item, int64_t worker) = 0;
};

/// Threads that fill batches in order into a ring of slots.
///
/// At most `ahead` batches are filled or being filled before they are asked for. With none ahead the threads work
/// during wait() only: where the device is the CPU, a loader thread beside the compute threads costs far more than its
/// own time. Items are handed out a few at a time, so that a slow one delays nobody. An exception ends the work: wait()
/// returns the batches before it, then throws that of the lowest item, every time. None of the threads uses OpenMP.
class BatchWorkers {
 public:
  BatchWorkers(BatchJob& job, int64_t num_workers, int64_t ahead, int64_t first_batch);

  /// Waits for the items being filled, at most one per thread.
  ~BatchWorkers();

  BatchWorkers(const BatchWorkers&) = delete;
  BatchWorkers& operator=(const BatchWorkers&) = delete;

  static int64_t num_slots(int64_t ahead) { return ahead > 1 ? ahead : 1; }

  /// Waits until the next batch is filled. Returns: its slot, which stays the caller's until release().
  int64_t wait();

  /// Gives the slot back; the following batch becomes the next.
  void release();

  /// The number of the next batch.
  int64_t next_batch() const { return next_; }

 private:
  struct Slot {
    int64_t batch = -1;
    int64_t chunks_in_work = 0;
    bool all_handed_out = false;
    int64_t first_bad_item = 0;
    std::exception_ptr error;  ///< of `first_bad_item`
  };

  struct Chunk {
    int64_t batch = 0;
    int64_t slot = 0;
    int64_t begin = 0;
    int64_t end = 0;
  };

  void stop();
  void run(int64_t worker);
  bool take(Chunk& chunk);
  bool open_next_batch();
  void fill(const Chunk& chunk, int64_t worker);
  void finish(const Chunk& chunk, int64_t bad_item, std::exception_ptr error);
  bool is_complete(const Slot& slot) const;
  Slot& slot_of(int64_t batch) { return slots_[static_cast<size_t>(batch % num_slots(ahead_))]; }

  BatchJob& job_;
  const int64_t num_workers_;
  const int64_t ahead_;

  mutable std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable done_;
  std::vector<Slot> slots_;
  int64_t next_;          ///< the batch that wait() returns; written by its caller only
  int64_t allowed_end_;   ///< batches below may be begun
  int64_t handed_batch_;  ///< whose items are handed out now
  int64_t handed_items_ = 0;
  int64_t num_items_ = 0;
  bool failed_ = false;
  std::atomic<bool> stopping_ = false;  ///< changes with the lock held; read between items without

  std::vector<std::thread> threads_;
};

}  // namespace contrastive::data::detail
