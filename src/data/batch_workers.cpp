#include "batch_workers.h"

#include <algorithm>
#include <utility>

namespace contrastive::data::detail {
namespace {

constexpr int64_t kMaxChunk = 8;
constexpr int64_t kChunksPerWorker = 8;

}  // namespace

BatchWorkers::BatchWorkers(BatchJob& job, int64_t num_workers, int64_t ahead, int64_t first_batch)
    : job_(job),
      num_workers_(num_workers),
      ahead_(ahead),
      slots_(static_cast<size_t>(num_slots(ahead))),
      next_(first_batch),
      allowed_end_(first_batch + ahead),
      handed_batch_(first_batch) {
  try {
    for (int64_t worker = 0; worker < num_workers; ++worker) threads_.emplace_back([this, worker] { run(worker); });
  } catch (...) {  // the system is out of threads
    stop();
    throw;
  }
}

BatchWorkers::~BatchWorkers() {
  stop();
}

void BatchWorkers::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  for (auto& thread : threads_) thread.join();
}

int64_t BatchWorkers::wait() {
  std::unique_lock lock(mutex_);
  if (allowed_end_ <= next_) {
    allowed_end_ = next_ + 1;
    work_.notify_all();
  }
  const Slot& slot = slot_of(next_);
  done_.wait(lock, [&] { return slot.batch == next_ && is_complete(slot); });
  if (slot.error) std::rethrow_exception(slot.error);
  return next_ % num_slots(ahead_);
}

void BatchWorkers::release() {
  {
    const std::lock_guard lock(mutex_);
    ++next_;
    allowed_end_ = next_ + ahead_;
  }
  work_.notify_all();
}

bool BatchWorkers::is_complete(const Slot& slot) const {
  return slot.chunks_in_work == 0 && (slot.all_handed_out || slot.error);
}

void BatchWorkers::run(int64_t worker) {
  Chunk chunk;
  while (take(chunk)) fill(chunk, worker);
}

/// Waits for work. Returns: false when there will be none.
bool BatchWorkers::take(Chunk& chunk) {
  std::unique_lock lock(mutex_);
  for (;;) {
    work_.wait(lock, [&] { return stopping_ || (!failed_ && handed_batch_ < allowed_end_); });
    if (stopping_) return false;
    if (handed_items_ > 0 || open_next_batch()) break;
  }
  Slot& slot = slot_of(handed_batch_);
  const int64_t size = std::clamp<int64_t>(num_items_ / (kChunksPerWorker * num_workers_), 1, kMaxChunk);
  chunk = {handed_batch_, handed_batch_ % num_slots(ahead_), handed_items_, std::min(handed_items_ + size, num_items_)};
  handed_items_ = chunk.end;
  ++slot.chunks_in_work;
  if (chunk.end == num_items_) {
    slot.all_handed_out = true;
    ++handed_batch_;
    handed_items_ = 0;
  }
  return true;
}

/// Called with the lock held. Returns: false if the job could not begin it.
bool BatchWorkers::open_next_batch() {
  Slot& slot = slot_of(handed_batch_);
  slot = Slot{};
  slot.batch = handed_batch_;
  try {
    num_items_ = job_.num_items(handed_batch_);
    job_.begin(handed_batch_, handed_batch_ % num_slots(ahead_));
    return true;
  } catch (...) {
    slot.error = std::current_exception();
    slot.first_bad_item = -1;
    failed_ = true;
    done_.notify_all();
    return false;
  }
}

void BatchWorkers::fill(const Chunk& chunk, int64_t worker) {
  int64_t item = chunk.begin;
  std::exception_ptr error;
  try {
    for (; item < chunk.end && !stopping_; ++item) job_.fill(chunk.batch, chunk.slot, item, worker);
  } catch (...) {
    error = std::current_exception();
  }
  finish(chunk, item, std::move(error));
}

void BatchWorkers::finish(const Chunk& chunk, int64_t bad_item, std::exception_ptr error) {
  const std::lock_guard lock(mutex_);
  Slot& slot = slots_[static_cast<size_t>(chunk.slot)];
  --slot.chunks_in_work;
  // Items are handed out in order, so the lowest bad item of a batch is always reached: which error is thrown does not
  // depend on the threads.
  if (error && (!slot.error || bad_item < slot.first_bad_item)) {
    slot.error = std::move(error);
    slot.first_bad_item = bad_item;
  }
  if (slot.error) failed_ = true;
  if (is_complete(slot)) done_.notify_all();
}

}  // namespace contrastive::data::detail
