#include "contrastive/eval/multi_label_meter.h"

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

namespace contrastive::eval {
namespace {

using Lists = std::vector<std::vector<int64_t>>;

Lists lists_of(const torch::Tensor& targets) {
  Lists lists(static_cast<size_t>(targets.size(0)));
  for (int64_t i = 0; i < targets.size(0); ++i) {
    for (int64_t c = 0; c < targets.size(1); ++c) {
      if (targets[i][c].item<int64_t>() != 0) lists[static_cast<size_t>(i)].push_back(c);
    }
  }
  return lists;
}

TEST(MultiLabelMeterTest, EqualsScikitLearnWithAndWithoutTies) {
  const SafetensorsFile file(test::own_fixtures_dir() / "evaluation" / "metrics.safetensors");
  for (const std::string name : {"multi_label", "multi_label_ties"}) {
    const auto scores = file.tensor(name + ".scores");
    MultiLabelMeter meter(scores.size(1));
    meter.add(scores, lists_of(file.tensor(name + ".targets")));
    const auto metrics = meter.metrics();
    EXPECT_EQ(metrics.num_samples, scores.size(0));
    const auto average_precision = file.tensor(name + ".average_precision");
    const auto eleven_point = file.tensor(name + ".eleven_point");
    int64_t i = 0;
    for (const auto& each : metrics.classes) {
      EXPECT_EQ(each.average_precision.has_value(), each.positives > 0);
      EXPECT_EQ(each.eleven_point.has_value(), each.positives > 0);
      if (each.positives == 0) continue;
      EXPECT_NEAR(*each.average_precision, average_precision[i].item<double>(), 1e-12) << name << " " << i;
      EXPECT_NEAR(*each.eleven_point, eleven_point[i].item<double>(), 1e-12) << name << " " << i;
      ++i;
    }
    EXPECT_EQ(i, average_precision.size(0));
    EXPECT_EQ(metrics.num_classes_without_positives, scores.size(1) - i);
    EXPECT_NEAR(metrics.mean_average_precision, average_precision.mean().item<double>(), 1e-12);
    EXPECT_NEAR(metrics.mean_eleven_point, eleven_point.mean().item<double>(), 1e-12);
  }
}

TEST(MultiLabelMeterTest, EqualsClipBenchmarkOnceClassesWithoutPositivesCountAsZero) {
  const SafetensorsFile file(test::own_fixtures_dir() / "evaluation" / "metrics.safetensors");
  const auto document = nlohmann::json::parse(read_text_file(test::own_fixtures_dir() / "evaluation" / "metrics.json"));
  const auto scores = file.tensor("multi_label.scores");
  MultiLabelMeter meter(scores.size(1));
  meter.add(scores, lists_of(file.tensor("multi_label.targets")));
  const auto metrics = meter.metrics();
  const auto counted = static_cast<double>(scores.size(1) - metrics.num_classes_without_positives);
  EXPECT_NEAR(metrics.mean_average_precision * counted / static_cast<double>(scores.size(1)),
              document.at("multi_label").at("clip_benchmark_mean_average_precision").get<double>(), 1e-6)
      << "the reference computes in fp32";
}

TEST(MultiLabelMeterTest, ElevenPointsTakeTheBestPrecisionFurtherOn) {
  MultiLabelMeter meter(1);
  // By score: right, wrong, right. Recall 0 .. 0.5: precision 1; 0.6 .. 1: precision 2 / 3.
  meter.add(at::tensor({3.0F, 2.0F, 1.0F}).unsqueeze(1), Lists{{0}, {}, {0}});
  EXPECT_NEAR(meter.metrics().mean_eleven_point, (6 * 1.0 + 5 * 2.0 / 3) / 11, 1e-12);
  EXPECT_NEAR(meter.metrics().mean_average_precision, (1.0 + 2.0 / 3) / 2, 1e-12);
}

TEST(MultiLabelMeterTest, OrderOfImagesNeverMatters) {
  MultiLabelMeter first(1), second(1);
  const auto scores = at::tensor({1.0F, 1.0F, 0.5F}).unsqueeze(1);
  first.add(scores, Lists{{0}, {}, {0}});
  second.add(scores, Lists{{}, {0}, {0}});
  EXPECT_EQ(first.metrics().mean_average_precision, second.metrics().mean_average_precision);
  EXPECT_EQ(first.metrics().mean_eleven_point, second.metrics().mean_eleven_point);
}

TEST(MultiLabelMeterTest, PutsAScoreThatIsNotANumberLast) {
  MultiLabelMeter meter(1);
  meter.add(at::tensor({std::numeric_limits<float>::quiet_NaN(), -1.0F}).unsqueeze(1), Lists{{}, {0}});
  EXPECT_DOUBLE_EQ(meter.metrics().mean_average_precision, 1.0);
}

TEST(MultiLabelMeterTest, RefusesWhatDoesNotFit) {
  MultiLabelMeter meter(3);
  EXPECT_EQ(test::message_of<DataError>([&] {
              meter.add(at::rand({2, 3}), Lists{{0}, {3}});
            }),
            "[multi_label_meter] row 1: labels must be in [0, 3), but one is 3");
  EXPECT_THROW(meter.add(at::rand({2, 4}), Lists{{0}, {1}}), c10::Error);
  EXPECT_THROW(meter.add(at::rand({2, 3}), Lists{{0}}), c10::Error);
  EXPECT_EQ(meter.metrics().num_samples, 0);
}

}  // namespace
}  // namespace contrastive::eval
