#include "contrastive/eval/retrieval.h"

#include <string>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/file.h"
#include "contrastive/core/safetensors.h"
#include "contrastive/eval/classification_meter.h"

#include "tests/support/paths.h"
#include "tests/support/tensors.h"

namespace contrastive::eval {
namespace {

void expect_recalls(const RetrievalDirection& direction, const RetrievalOptions& options,
                    const nlohmann::json& document, const std::string& prefix) {
  for (size_t i = 0; i < options.recall_at.size(); ++i) {
    const auto key = prefix + "_R@" + std::to_string(options.recall_at[i]);
    EXPECT_DOUBLE_EQ(direction.recall[i], document.at(key).get<double>()) << key;
  }
}

TEST(RetrievalParityTest, RanksAndRecallsOfSeveralCaptionsEqualTheReference) {
  const auto fixtures = test::fixtures_dir();
  if (!fixtures) GTEST_SKIP() << "no parity fixtures here; set CONTRASTIVE_FIXTURES";
  const SafetensorsFile file(*fixtures / "zeroshot" / "retrieval.safetensors");
  const auto document = nlohmann::json::parse(read_text_file(*fixtures / "zeroshot" / "retrieval.json"));
  const RetrievalOptions options;
  const auto metrics = retrieval_metrics(file.tensor("image_features"), file.tensor("text_features"),
                                         file.tensor("text_image_index"), options);
  EXPECT_TRUE(
      test::tensors_equal("text_to_image_rank", metrics.image_retrieval.ranks, file.tensor("text_to_image_rank")));
  EXPECT_TRUE(
      test::tensors_equal("image_to_text_rank", metrics.text_retrieval.ranks, file.tensor("image_to_text_rank")));
  expect_recalls(metrics.image_retrieval, options, document, "text_to_image");
  expect_recalls(metrics.text_retrieval, options, document, "image_to_text");
}

TEST(RetrievalParityTest, EqualsOpenClipsMetricsOfOneCaptionAnImage) {
  const auto fixtures = test::fixtures_dir();
  if (!fixtures) GTEST_SKIP() << "no parity fixtures here; set CONTRASTIVE_FIXTURES";
  const SafetensorsFile file(*fixtures / "zeroshot" / "clip_metrics.safetensors");
  const auto document = nlohmann::json::parse(read_text_file(*fixtures / "zeroshot" / "clip_metrics.json"));
  const RetrievalOptions options;
  const auto images = file.tensor("image_features");
  const auto metrics = retrieval_metrics(images, file.tensor("text_features"), at::arange(images.size(0)), options);
  expect_recalls(metrics.image_retrieval, options, document, "text_to_image");
  expect_recalls(metrics.text_retrieval, options, document, "image_to_text");
  const auto number = [&](const char* key) { return document.at(key).get<double>(); };
  EXPECT_DOUBLE_EQ(metrics.image_retrieval.mean_rank, number("text_to_image_mean_rank"));
  EXPECT_DOUBLE_EQ(metrics.text_retrieval.mean_rank, number("image_to_text_mean_rank"));
  EXPECT_DOUBLE_EQ(metrics.image_retrieval.median_rank, number("text_to_image_median_rank"));
  EXPECT_DOUBLE_EQ(metrics.text_retrieval.median_rank, number("image_to_text_median_rank"));
}

TEST(ClassificationParityTest, AccuraciesAndRecallOfEveryClassEqualOpenClips) {
  const auto fixtures = test::fixtures_dir();
  if (!fixtures) GTEST_SKIP() << "no parity fixtures here; set CONTRASTIVE_FIXTURES";
  const SafetensorsFile file(*fixtures / "zeroshot" / "classifier.safetensors");
  const auto document = nlohmann::json::parse(read_text_file(*fixtures / "zeroshot" / "classifier.json"));
  const auto scores = file.tensor("logits");
  ClassificationMeter meter(scores.size(1));
  meter.add(scores, file.tensor("target"));
  const auto metrics = meter.metrics();
  EXPECT_EQ(metrics.num_samples, scores.size(0));
  EXPECT_NEAR(metrics.top1_accuracy, document.at("top1").get<double>(), 1e-12);
  EXPECT_NEAR(metrics.top5_accuracy, document.at("top5").get<double>(), 1e-12);
  EXPECT_NEAR(metrics.mean_per_class_recall, document.at("mean_per_class_recall").get<double>(), 1e-7)
      << "the reference averages in fp32";
  const auto classes = meter.class_counts();
  for (const auto& [label, recall] : document.at("recall_per_class").items()) {
    EXPECT_NEAR(classes.at(std::stoul(label)).recall().value(), recall.get<double>(), 1e-7) << label;
  }
}

}  // namespace
}  // namespace contrastive::eval
