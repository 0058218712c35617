#include "contrastive/data/sample_order.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"

namespace contrastive::data {
namespace {

constexpr uint64_t kSeed = 17;

std::vector<int64_t> epoch_of(const SampleOrder& order, int64_t epoch) {
  std::vector<int64_t> indices;
  for (int64_t position = 0; position < order.num_samples(); ++position) indices.push_back(order.at(epoch, position));
  return indices;
}

int64_t count_runs(std::vector<int64_t> indices) {
  std::sort(indices.begin(), indices.end());
  int64_t runs = 1;
  for (size_t i = 1; i < indices.size(); ++i) runs += indices[i] != indices[i - 1] + 1;
  return runs;
}

TEST(SampleOrderTest, VisitsEverySampleOnceInEachEpoch) {
  for (const SampleOrderOptions options : {SampleOrderOptions{1, 1}, SampleOrderOptions{4, 3}, SampleOrderOptions{}}) {
    for (const int64_t size : {1, 2, 3, 4, 5, 11, 12, 13, 24, 25, 255, 256, 257, 511, 513, 16384, 16385, 40000}) {
      const SampleOrder order(kSeed, size, options);
      std::vector<int64_t> expected(static_cast<size_t>(size));
      std::iota(expected.begin(), expected.end(), 0);
      for (const int64_t epoch : {0, 1, 7}) {
        auto indices = epoch_of(order, epoch);
        std::sort(indices.begin(), indices.end());
        ASSERT_EQ(indices, expected) << "size " << size << ", block " << options.block_size << ", epoch " << epoch;
      }
    }
  }
}

TEST(SampleOrderTest, DependsOnSeedEpochAndPositionOnly) {
  const SampleOrder order(kSeed, 5000);
  const SampleOrder same(kSeed, 5000);
  const auto forwards = epoch_of(order, 3);
  for (int64_t position = 4999; position >= 0; --position) {
    ASSERT_EQ(same.at(3, position), forwards[static_cast<size_t>(position)]);
  }
  EXPECT_NE(epoch_of(order, 4), forwards);
  EXPECT_NE(epoch_of(SampleOrder(kSeed + 1, 5000), 3), forwards);
}

TEST(SampleOrderTest, ReadsFewLongRunsPerWindow) {
  const int64_t size = 100'000;
  const SampleOrder order(kSeed, size, {.block_size = 100, .window_blocks = 10});
  const auto indices = epoch_of(order, 0);
  for (int64_t begin = 0; begin < size; begin += 1000) {
    const std::vector<int64_t> window(indices.begin() + begin, indices.begin() + begin + 1000);
    EXPECT_LE(count_runs(window), 11) << "window at position " << begin;  // one block may straddle the set's end
  }
}

TEST(SampleOrderTest, WindowsTakeBlocksFromAllOverTheSet) {
  const int64_t size = 100'000;
  const SampleOrder order(kSeed, size, {.block_size = 100, .window_blocks = 20});
  const auto indices = epoch_of(order, 0);
  for (int64_t begin = 0; begin < size; begin += 2000) {
    std::set<int64_t> tenths;
    for (int64_t i = begin; i < begin + 2000; ++i) tenths.insert(indices[static_cast<size_t>(i)] / (size / 10));
    EXPECT_GE(tenths.size(), 5U) << "window at position " << begin;
  }
}

TEST(SampleOrderTest, MixesNeighboursWithinAWindow) {
  const SampleOrder order(kSeed, 50'000);
  const auto indices = epoch_of(order, 0);
  int64_t still_neighbours = 0;
  for (size_t i = 1; i < indices.size(); ++i) still_neighbours += indices[i] == indices[i - 1] + 1;
  EXPECT_LE(still_neighbours, 50);  // about 50,000 / 12,500 are expected by chance
}

TEST(SampleOrderTest, SpreadsTheSetsIndicesEvenlyOverPositions) {
  // Mean index of the first half of an epoch, over many epochs: (N - 1) / 2 for a fair order.
  const int64_t size = 2000;
  const SampleOrder order(kSeed, size, {.block_size = 16, .window_blocks = 4});
  double sum = 0;
  const int64_t epochs = 200;
  for (int64_t epoch = 0; epoch < epochs; ++epoch) {
    for (int64_t position = 0; position < size / 2; ++position) sum += static_cast<double>(order.at(epoch, position));
  }
  const double mean = sum / static_cast<double>(epochs * size / 2);
  EXPECT_NEAR(mean, static_cast<double>(size - 1) / 2, 0.02 * static_cast<double>(size));
}

TEST(SampleOrderTest, EndsWithAnotherShortBlockInEachEpoch) {
  const int64_t size = 1030;
  const SampleOrder order(kSeed, size, {.block_size = 100, .window_blocks = 1});
  std::set<int64_t> last_starts;
  for (int64_t epoch = 0; epoch < 20; ++epoch) {
    std::vector<int64_t> tail;
    for (int64_t position = 1000; position < size; ++position) tail.push_back(order.at(epoch, position));
    last_starts.insert(*std::min_element(tail.begin(), tail.end()));
  }
  EXPECT_GE(last_starts.size(), 15U);
}

TEST(SampleOrderTest, NoWindowIsMuchSmallerThanAnother) {
  // 65 blocks in windows of at most 64: halves, not 64 and 1; a window of one block would give near-sequential batches.
  const SampleOrder order(kSeed, 65 * 4, {.block_size = 4, .window_blocks = 64});
  std::vector<int64_t> tail;
  for (int64_t position = 64 * 4; position < 65 * 4; ++position) tail.push_back(order.at(0, position));
  EXPECT_GE(count_runs(tail), 3);
}

TEST(SampleOrderTest, HandlesSetsFarLargerThanMemory) {
  const int64_t size = int64_t{5} << 40;
  const SampleOrder order(kSeed, size);
  for (const int64_t position : {int64_t{0}, size / 3, size - 1}) {
    const int64_t index = order.at(2, position);
    EXPECT_GE(index, 0);
    EXPECT_LT(index, size);
  }
}

TEST(SampleOrderTest, RejectsEmptySetsAndEmptyBlocks) {
  const auto message_of = [](int64_t size, SampleOrderOptions options) -> std::string {
    try {
      SampleOrder(kSeed, size, options);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(message_of(0, {}), "[sample_order] num_samples must be at least 1, but is 0");
  EXPECT_EQ(message_of(5, {0, 1}), "[sample_order] block_size must be at least 1, but is 0");
  EXPECT_EQ(message_of(5, {1, -2}), "[sample_order] window_blocks must be at least 1, but is -2");
}

}  // namespace
}  // namespace contrastive::data
