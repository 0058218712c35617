#include "contrastive/eval/search.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

namespace contrastive::eval {
namespace {

/// Small whole numbers: products are exact, and many scores are equal.
torch::Tensor whole_numbers(int64_t rows, int64_t columns, uint64_t seed) {
  return at::randint(-2, 3, {rows, columns}, at::make_generator<at::CPUGeneratorImpl>(seed), at::kFloat);
}

/// All rows by falling score, then by rising index.
std::vector<int64_t> sorted_rows(const torch::Tensor& scores) {
  std::vector<int64_t> rows(static_cast<size_t>(scores.size(0)));
  std::iota(rows.begin(), rows.end(), 0);
  const auto* score = scores.const_data_ptr<float>();
  std::stable_sort(rows.begin(), rows.end(), [&](int64_t a, int64_t b) { return score[a] > score[b]; });
  return rows;
}

TEST(SearchTest, EqualsAFullSortOverManyTilesWithTiesByIndex) {
  const auto queries = whole_numbers(300, 4, 1);
  const auto index = whole_numbers(20'000, 4, 2);
  for (const int64_t k : {1, 7, 100}) {
    const auto result = search(queries, index, k);
    ASSERT_EQ(result.indices.sizes(), (std::vector<int64_t>{300, k}));
    for (const int64_t q : {0, 1, 255, 256, 299}) {
      const auto scores = index.matmul(queries[q]);
      const auto expected = sorted_rows(scores);
      for (int64_t rank = 0; rank < k; ++rank) {
        const auto row = expected[static_cast<size_t>(rank)];
        ASSERT_EQ(result.indices[q][rank].item<int64_t>(), row) << "query " << q << ", rank " << rank << " of " << k;
        ASSERT_EQ(result.scores[q][rank].item<float>(), scores[row].item<float>());
      }
    }
  }
}

TEST(SearchTest, OrdersNegativeScoresZeroesAndWhatIsNotANumber) {
  const auto index = at::tensor({0.0F / -1.0F, -3.0F, std::numeric_limits<float>::quiet_NaN(), 2.0F, 0.0F, -0.5F});
  const auto result = search(at::ones({1, 1}), index.unsqueeze(1), 6);
  EXPECT_TRUE(at::equal(result.indices, at::tensor({3, 0, 4, 5, 1, 2}, at::kLong).unsqueeze(0))) << result.indices;
}

TEST(SearchTest, ReturnsAllRowsOfASmallIndexAndTakesHalves) {
  const auto queries = whole_numbers(2, 4, 3);
  const auto index = whole_numbers(5, 4, 4);
  const auto result = search(queries, index, 10);
  EXPECT_EQ(result.indices.size(1), 5);
  const auto halves = search(queries.to(at::kHalf), index.to(at::kBFloat16), 10);
  EXPECT_TRUE(at::equal(result.indices, halves.indices));
  EXPECT_EQ(halves.scores.scalar_type(), at::kFloat);
  EXPECT_EQ(search(at::empty({0, 4}), index, 3).indices.sizes(), (std::vector<int64_t>{0, 3}));
}

TEST(SearchTest, RefusesWhatDoesNotFit) {
  const auto index = at::ones({5, 4});
  EXPECT_THROW(search(at::ones({2, 3}), index, 1), c10::Error);
  EXPECT_THROW(search(at::ones({2, 4}), index, 0), c10::Error);
  EXPECT_THROW(search(at::ones({2, 4}), at::ones({0, 4}), 1), c10::Error);
  EXPECT_THROW(search(at::ones({2, 4}, at::kLong), index, 1), c10::Error);
}

}  // namespace
}  // namespace contrastive::eval
