#include "contrastive/eval/classification_meter.h"

#include <limits>
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

using Lists = std::vector<std::vector<int64_t>>;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

SafetensorsFile reference_tensors() {
  return SafetensorsFile(test::own_fixtures_dir() / "evaluation" / "metrics.safetensors");
}

nlohmann::json reference_values() {
  return nlohmann::json::parse(read_text_file(test::own_fixtures_dir() / "evaluation" / "metrics.json"));
}

TEST(ClassificationMeterTest, EqualsScikitLearnAndClipBenchmark) {
  const auto file = reference_tensors();
  const auto expected = reference_values().at("classification");
  const auto scores = file.tensor("classification.scores");
  const auto labels = file.tensor("classification.labels");
  ClassificationMeter meter(scores.size(1));
  meter.add(scores.narrow(0, 0, 100), labels.narrow(0, 0, 100));
  meter.add(scores.narrow(0, 100, 300), labels.narrow(0, 100, 300));
  const auto metrics = meter.metrics();
  EXPECT_EQ(metrics.num_samples, scores.size(0));
  EXPECT_DOUBLE_EQ(metrics.top1_accuracy, expected.at("top1").get<double>());
  EXPECT_DOUBLE_EQ(metrics.top5_accuracy, expected.at("top5").get<double>());
  EXPECT_NEAR(metrics.mean_per_class_recall, expected.at("mean_per_class_recall").get<double>(), 1e-12);
  EXPECT_DOUBLE_EQ(metrics.mean_top1_top5, (metrics.top1_accuracy + metrics.top5_accuracy) / 2);
  EXPECT_FALSE(metrics.roc_auc.has_value());

  auto confusion = at::zeros_like(file.tensor("classification.confusion"));
  for (const auto& [pair, count] : meter.confusion()) confusion[pair.first][pair.second] = count;
  EXPECT_TRUE(test::tensors_equal("confusion", confusion, file.tensor("classification.confusion")));
  const auto classes = meter.class_counts();
  for (int64_t c = 0; c < scores.size(1); ++c) {
    const auto& each = classes[static_cast<size_t>(c)];
    EXPECT_EQ(each.samples, file.tensor("classification.support")[c].item<int64_t>());
    EXPECT_EQ(each.recall().has_value(), each.samples > 0);
    EXPECT_DOUBLE_EQ(each.recall().value_or(0), file.tensor("classification.recall")[c].item<double>());
    EXPECT_DOUBLE_EQ(each.precision().value_or(0), file.tensor("classification.precision")[c].item<double>());
  }
}

TEST(ClassificationMeterTest, RocAucOfTiedScoresEqualsScikitLearn) {
  const auto file = reference_tensors();
  ClassificationMeter meter(2);
  meter.add(file.tensor("two_classes.scores"), file.tensor("two_classes.labels"));
  EXPECT_NEAR(meter.metrics().roc_auc.value(), reference_values().at("two_classes").at("roc_auc").get<double>(), 1e-12);
}

TEST(ClassificationMeterTest, RocAucIsUndefinedForOneClass) {
  ClassificationMeter meter(2);
  meter.add(at::rand({5, 2}), at::ones({5}, at::kLong));
  EXPECT_FALSE(meter.metrics().roc_auc.has_value());
}

TEST(ClassificationMeterTest, CountsTopOneTopFiveAndRecallOfUnevenClasses) {
  ClassificationMeter meter(7);
  // Row scores fall from class 0 to class 6, so the right class has rank `label`.
  const auto scores = at::arange(7, 0, -1).to(at::kFloat).unsqueeze(0).expand({4, 7});
  meter.add(scores, test::indices({0, 0, 4, 5}));
  const auto metrics = meter.metrics();
  EXPECT_EQ(metrics.num_samples, 4);
  EXPECT_DOUBLE_EQ(metrics.top1_accuracy, 0.5);
  EXPECT_DOUBLE_EQ(metrics.top5_accuracy, 0.75);
  EXPECT_DOUBLE_EQ(metrics.mean_per_class_recall, 1.0 / 3);  // classes 0, 4, 5: recalls 1, 0, 0
}

TEST(ClassificationMeterTest, LetsTheFirstOfTiedClassesWin) {
  ClassificationMeter meter(40);
  meter.add(at::zeros({3, 40}), test::indices({0, 1, 39}));
  EXPECT_DOUBLE_EQ(meter.metrics().top1_accuracy, 1.0 / 3);
  EXPECT_DOUBLE_EQ(meter.metrics().top5_accuracy, 2.0 / 3);
  EXPECT_EQ(meter.class_counts()[0].predicted, 3);
}

TEST(ClassificationMeterTest, NeverCountsAScoreThatIsNotANumberAsAHit) {
  ClassificationMeter meter(3);
  meter.add(at::full({2, 3}, kNan), test::indices({0, 1}));
  EXPECT_DOUBLE_EQ(meter.metrics().top1_accuracy, 0.0);
  EXPECT_DOUBLE_EQ(meter.metrics().top5_accuracy, 0.0);
  const ConfusionCounts no_prediction{{{0, -1}, 1}, {{1, -1}, 1}};
  EXPECT_EQ(meter.confusion(), no_prediction);
  meter.add(at::tensor({kNan, -2.0F, kNan}).unsqueeze(0), test::indices({1}));
  EXPECT_EQ(meter.class_counts()[1].hits, 1) << "a number stands before what is none";
}

TEST(ClassificationMeterTest, GivesZeroesForNoSamples) {
  const auto metrics = ClassificationMeter(3).metrics();
  EXPECT_EQ(metrics.num_samples, 0);
  EXPECT_EQ(metrics.top1_accuracy, 0);
}

TEST(ClassificationMeterTest, AnyOfSeveralLabelsIsAHitAndImagesWithoutAreLeftOut) {
  ClassificationMeter meter(7);
  const auto scores = at::arange(7, 0, -1).to(at::kFloat).unsqueeze(0).expand({4, 7});
  meter.add(scores, Lists{{6, 0}, {}, {3, 5}, {6, 5}});
  const auto metrics = meter.metrics();
  EXPECT_EQ(metrics.num_samples, 3);
  EXPECT_EQ(metrics.num_unlabelled, 1);
  EXPECT_DOUBLE_EQ(metrics.top1_accuracy, 1.0 / 3);
  EXPECT_DOUBLE_EQ(metrics.top5_accuracy, 2.0 / 3);
  const ConfusionCounts expected{{{0, 0}, 1}, {{3, 0}, 1}, {{5, 0}, 1}};
  EXPECT_EQ(meter.confusion(), expected);
}

TEST(ClassificationMeterTest, MergedClassesCountAsOne) {
  // Classes 1 and 4 have one name, hence equal scores.
  const auto row = at::tensor({0.0F, 5.0F, 4.0F, 3.0F, 5.0F, 2.0F, 1.0F});
  const auto scores = row.unsqueeze(0).expand({4, 7});
  const auto labels = test::indices({1, 4, 4, 6});
  ClassificationMeter apart(7);
  apart.add(scores, labels);
  EXPECT_DOUBLE_EQ(apart.metrics().top1_accuracy, 0.25);
  EXPECT_DOUBLE_EQ(apart.metrics().top5_accuracy, 0.75);
  ClassificationMeter merged(7, {0, 1, 2, 3, 1, 5, 6});
  merged.add(scores, labels);
  EXPECT_DOUBLE_EQ(merged.metrics().top1_accuracy, 0.75);
  EXPECT_DOUBLE_EQ(merged.metrics().top5_accuracy, 1.0) << "a name takes one of the five places";
  EXPECT_DOUBLE_EQ(merged.metrics().mean_per_class_recall, 0.5);
  EXPECT_EQ(merged.class_counts()[1].samples, 3);
  EXPECT_EQ(merged.class_counts()[4].samples, 0);
}

TEST(ClassificationMeterTest, RefusesWhatDoesNotFitAndCountsNothingOfIt) {
  ClassificationMeter meter(3);
  EXPECT_EQ(test::message_of<DataError>([&] {
              meter.add(at::rand({2, 3}), test::indices({0, 3}));
            }),
            "[classification_meter] row 1: the label must be in [0, 3), but is 3");
  EXPECT_EQ(test::message_of<DataError>([&] {
              meter.add(at::rand({2, 3}), Lists{{0}, {1, -1}});
            }),
            "[classification_meter] row 1: the label must be in [0, 3), but is -1");
  EXPECT_EQ(meter.metrics().num_samples, 0);
  EXPECT_THROW(meter.add(at::rand({2, 4}), test::indices({0, 1})), c10::Error);
  EXPECT_THROW(meter.add(at::rand({2, 3}), test::indices({0})), c10::Error);
  EXPECT_THROW(ClassificationMeter(3, {0, 2, 2}), c10::Error);
  EXPECT_THROW(ClassificationMeter(3, {0, 0}), c10::Error);
}

TEST(ClassificationMeterTest, EqualsASortOfEveryRow) {
  const auto scores = test::random_normal({200, 37}, 3).mul(3).round();  // many ties
  const auto labels = at::arange(200).remainder(37);
  ClassificationMeter meter(37);
  meter.add(scores.to(at::kHalf), labels);
  const auto order = std::get<1>(scores.sort(/*stable=*/true, /*dim=*/1, /*descending=*/true));
  const auto is_right = order.eq(labels.unsqueeze(1));
  const auto hits = [&](int64_t k) { return is_right.narrow(1, 0, k).sum().item<double>() / 200; };
  EXPECT_DOUBLE_EQ(meter.metrics().top1_accuracy, hits(1));
  EXPECT_DOUBLE_EQ(meter.metrics().top5_accuracy, hits(5));
  int64_t counted = 0;
  for (int64_t i = 0; i < 200; ++i) counted += meter.confusion().count({i % 37, order[i][0].item<int64_t>()}) > 0;
  EXPECT_EQ(counted, 200);
}

}  // namespace
}  // namespace contrastive::eval
