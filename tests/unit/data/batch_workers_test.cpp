#include "src/data/batch_workers.h"

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace contrastive::data::detail {
namespace {

using std::chrono::milliseconds;

constexpr int64_t kEveryItem = -2;

/// Writes batch x 1000 + item into each place; fails and dawdles where told.
class RecordingJob : public BatchJob {
 public:
  RecordingJob(int64_t items, int64_t slots) : items_(items), values_(static_cast<size_t>(slots)) {}

  int64_t num_items(int64_t) const override { return items_; }

  void begin(int64_t batch, int64_t slot) override {
    if (batch == bad_begin) throw std::runtime_error("no memory for batch " + std::to_string(batch));
    ++begun;
    values_[static_cast<size_t>(slot)].assign(static_cast<size_t>(items_), -1);
  }

  void fill(int64_t batch, int64_t slot, int64_t item, int64_t) override {
    if (batch == slow_batch && (item == slow_item || slow_item == kEveryItem)) {
      std::this_thread::sleep_for(milliseconds(50));
    }
    for (const int64_t bad : bad_items) {
      if (batch == bad_batch && item == bad) throw std::runtime_error("item " + std::to_string(item));
    }
    values_[static_cast<size_t>(slot)][static_cast<size_t>(item)] = batch * 1000 + item;
    ++filled;
  }

  const std::vector<int64_t>& values(int64_t slot) const { return values_[static_cast<size_t>(slot)]; }

  int64_t bad_begin = -1;
  int64_t bad_batch = -1;
  std::vector<int64_t> bad_items;
  int64_t slow_batch = -1;
  int64_t slow_item = -1;
  std::atomic<int64_t> begun{0};
  std::atomic<int64_t> filled{0};

 private:
  int64_t items_;
  std::vector<std::vector<int64_t>> values_;
};

std::string error_of(BatchWorkers& workers) {
  try {
    workers.wait();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "no error";
}

TEST(BatchWorkersTest, DeliversWholeBatchesInOrder) {
  for (const int64_t ahead : {0, 1, 2, 5}) {
    for (const int64_t num_workers : {1, 2, 7}) {
      for (const int64_t items : {1, 5, 64, 200}) {
        RecordingJob job(items, BatchWorkers::num_slots(ahead));
        job.slow_batch = 4;
        job.slow_item = 0;
        BatchWorkers workers(job, num_workers, ahead, /*first_batch=*/3);
        for (int64_t batch = 3; batch < 13; ++batch) {
          ASSERT_EQ(workers.next_batch(), batch);
          const auto& values = job.values(workers.wait());
          for (int64_t item = 0; item < items; ++item) {
            ASSERT_EQ(values[static_cast<size_t>(item)], batch * 1000 + item) << ahead << " ahead, " << num_workers;
          }
          workers.release();
        }
      }
    }
  }
}

TEST(BatchWorkersTest, WorksOnlyWhileWaitedForIfNothingIsAhead) {
  RecordingJob job(10, 1);
  BatchWorkers workers(job, 2, /*ahead=*/0, 0);
  std::this_thread::sleep_for(milliseconds(20));
  EXPECT_EQ(job.begun, 0);
  workers.wait();
  workers.release();
  std::this_thread::sleep_for(milliseconds(20));
  EXPECT_EQ(job.begun, 1);
  EXPECT_EQ(job.filled, 10);
}

TEST(BatchWorkersTest, NeverRunsFurtherAheadThanTold) {
  RecordingJob job(10, 3);
  BatchWorkers workers(job, 2, /*ahead=*/3, 0);
  for (int64_t taken = 0; taken < 4; ++taken) {
    while (job.filled < 10 * (taken + 3)) std::this_thread::yield();
    std::this_thread::sleep_for(milliseconds(10));
    EXPECT_EQ(job.begun, taken + 3);
    EXPECT_EQ(job.filled, 10 * (taken + 3));
    workers.wait();
    workers.release();
  }
}

TEST(BatchWorkersTest, ThrowsTheErrorOfTheLowestItemAfterTheBatchesBeforeIt) {
  for (const int64_t ahead : {0, 1, 4}) {
    for (const int64_t num_workers : {1, 2, 8}) {
      RecordingJob job(100, BatchWorkers::num_slots(ahead));
      job.bad_batch = 2;
      job.bad_items = {17, 18, 19, 20, 21, 30, 99};
      job.slow_batch = 2;
      job.slow_item = 17;  // other threads meet later bad items first
      BatchWorkers workers(job, num_workers, ahead, 0);
      for (int64_t batch = 0; batch < 2; ++batch) {
        EXPECT_EQ(job.values(workers.wait())[99], batch * 1000 + 99);
        workers.release();
      }
      EXPECT_EQ(error_of(workers), "item 17") << ahead << " ahead, " << num_workers << " workers";
      EXPECT_EQ(error_of(workers), "item 17") << "the second time";
    }
  }
}

TEST(BatchWorkersTest, ThrowsWhatBeginThrows) {
  for (const int64_t ahead : {0, 2}) {
    RecordingJob job(4, BatchWorkers::num_slots(ahead));
    job.bad_begin = 1;
    BatchWorkers workers(job, 2, ahead, 0);
    workers.wait();
    workers.release();
    EXPECT_EQ(error_of(workers), "no memory for batch 1");
    EXPECT_EQ(error_of(workers), "no memory for batch 1");
  }
}

TEST(BatchWorkersTest, StopsWhileTheRingIsFull) {
  RecordingJob job(8, 4);
  {
    BatchWorkers workers(job, 3, /*ahead=*/4, 0);
    while (job.filled < 32) std::this_thread::yield();
  }
  EXPECT_EQ(job.begun, 4);
}

TEST(BatchWorkersTest, StopsInTheMiddleOfABatch) {
  RecordingJob job(1'000'000, 1);
  job.slow_batch = 0;
  job.slow_item = kEveryItem;
  {
    BatchWorkers workers(job, 2, /*ahead=*/1, 0);
    while (job.begun == 0) std::this_thread::yield();
  }
  EXPECT_LE(job.filled, 2 * 3);  // two threads; a batch may go on for a moment after it was begun
}

}  // namespace
}  // namespace contrastive::data::detail
