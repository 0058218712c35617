#include "contrastive/eval/retrieval.h"

#include <limits>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/file.h"
#include "contrastive/core/safetensors.h"

#include "tests/support/errors.h"
#include "tests/support/paths.h"
#include "tests/support/tensors.h"

namespace contrastive::eval {
namespace {

/// Sorts all candidates of every query in fp64; `is_right[q][c]`. Ranks from 0 of the first right one.
torch::Tensor sorted_ranks(const torch::Tensor& queries, const torch::Tensor& candidates,
                           const torch::Tensor& is_right) {
  const auto scores = queries.to(at::kDouble).matmul(candidates.to(at::kDouble).t());
  const auto order = std::get<1>(scores.sort(/*stable=*/true, /*dim=*/1, /*descending=*/true));
  return is_right.gather(1, order).to(at::kLong).argmax(1);
}

TEST(RetrievalTest, RecallsEqualClipBenchmarkWithUnevenNumbersOfCaptions) {
  const SafetensorsFile file(test::own_fixtures_dir() / "evaluation" / "metrics.safetensors");
  const auto expected =
      nlohmann::json::parse(read_text_file(test::own_fixtures_dir() / "evaluation" / "metrics.json")).at("retrieval");
  const RetrievalOptions options;
  const auto metrics = retrieval_metrics(file.tensor("retrieval.images"), file.tensor("retrieval.texts"),
                                         file.tensor("retrieval.text_image_index"), options);
  for (size_t i = 0; i < options.recall_at.size(); ++i) {
    const auto k = std::to_string(options.recall_at[i]);
    EXPECT_DOUBLE_EQ(metrics.image_retrieval.recall[i], expected.at("image_retrieval_recall@" + k).get<double>());
    EXPECT_DOUBLE_EQ(metrics.text_retrieval.recall[i], expected.at("text_retrieval_recall@" + k).get<double>());
  }
}

TEST(RetrievalTest, RanksEqualAFullSortAcrossTilesAndTies) {
  const int64_t num_images = 700, num_texts = 2600;
  auto images = test::random_normal({num_images, 5}, 1).round();  // small whole numbers: many exact ties
  auto texts = test::random_normal({num_texts, 5}, 2).round();
  const auto index = at::arange(num_texts).mul(11).remainder(num_images);
  const auto is_right = at::zeros({num_texts, num_images}, at::kBool).scatter(1, index.unsqueeze(1), true);
  const auto metrics = retrieval_metrics(images, texts, index);
  EXPECT_TRUE(test::tensors_equal("texts", metrics.image_retrieval.ranks, sorted_ranks(texts, images, is_right)));
  EXPECT_TRUE(test::tensors_equal("images", metrics.text_retrieval.ranks, sorted_ranks(images, texts, is_right.t())));
}

TEST(RetrievalTest, WhatFp32CannotTellIsDecidedExactly) {
  // Directions so near to each other that most fp32 products are equal or in the wrong order.
  const auto base = test::random_normal({1, 96}, 4);
  const auto images = base + 1e-6 * test::random_normal({300, 96}, 5);
  const auto texts = base + 1e-6 * test::random_normal({300, 96}, 6);
  const auto metrics = retrieval_metrics(images, texts, at::arange(300));
  const auto is_right = at::eye(300).to(at::kBool);
  EXPECT_TRUE(test::tensors_equal("texts", metrics.image_retrieval.ranks, sorted_ranks(texts, images, is_right)));
  EXPECT_TRUE(test::tensors_equal("images", metrics.text_retrieval.ranks, sorted_ranks(images, texts, is_right)));
}

TEST(RetrievalTest, EqualFeaturesDoNotGivePerfectRecall) {
  const auto metrics = retrieval_metrics(at::ones({20, 4}), at::ones({20, 4}), at::arange(20), {.recall_at = {1, 5}});
  EXPECT_TRUE(test::tensors_equal("ranks", metrics.image_retrieval.ranks, at::arange(20)));
  EXPECT_DOUBLE_EQ(metrics.image_retrieval.recall[0], 0.05);
  EXPECT_DOUBLE_EQ(metrics.text_retrieval.recall[1], 0.25);
  EXPECT_DOUBLE_EQ(metrics.image_retrieval.mean_rank, 10.5);
  EXPECT_DOUBLE_EQ(metrics.image_retrieval.median_rank, 10);  // floor(9.5) + 1
}

TEST(RetrievalTest, PutsAScoreThatIsNotANumberLast) {
  auto images = at::eye(4);
  images[1].fill_(std::numeric_limits<float>::quiet_NaN());
  const auto metrics = retrieval_metrics(images, at::eye(4), at::arange(4));
  EXPECT_TRUE(test::tensors_equal("texts", metrics.image_retrieval.ranks, test::indices({0, 3, 0, 0})));
  EXPECT_TRUE(test::tensors_equal("images", metrics.text_retrieval.ranks, test::indices({0, 1, 0, 0})))
      << "all scores of image 1 are equally useless";
}

TEST(RetrievalTest, RefusesWrongIndicesAndShapes) {
  const auto features = at::rand({3, 4});
  const auto call = [&](std::vector<int64_t> index) {
    return test::message_of<DataError>([&] { retrieval_metrics(features, features, test::indices(index)); });
  };
  EXPECT_EQ(call({0, 1, 3}), "[retrieval] text 2: the index of its image must be in [0, 3), but is 3");
  EXPECT_EQ(call({0, -1, 2}), "[retrieval] text 1: the index of its image must be in [0, 3), but is -1");
  EXPECT_EQ(call({0, 0, 2}), "[retrieval] image 1 has no text");
  EXPECT_EQ(
      test::message_of<ConfigError>([&] { retrieval_metrics(features, features, at::arange(3), {.recall_at = {0}}); }),
      "[retrieval] recall_at must be numbers of at least 1, but one is 0");
  EXPECT_THROW(retrieval_metrics(features, at::rand({3, 5}), at::arange(3)), c10::Error);
  EXPECT_THROW(retrieval_metrics(features, features, at::arange(2)), c10::Error);
  EXPECT_THROW(retrieval_metrics(at::rand({0, 4}), at::rand({0, 4}), at::arange(0)), c10::Error);
}

}  // namespace
}  // namespace contrastive::eval
