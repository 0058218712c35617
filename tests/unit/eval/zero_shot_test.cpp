#include "contrastive/eval/zero_shot.h"

#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace contrastive::eval {
namespace {

TEST(AveragePromptsTest, NormalisesEachPromptBeforeTheMeanAndTheMeanAfterwards) {
  // Two templates of one class: (3, 0) and (0, 0.5); lengths must not weigh.
  const auto features = at::tensor({3.0F, 0.0F, 0.0F, 0.5F}).view({1, 2, 2});
  const auto averaged = average_prompts(features);
  const auto half = std::sqrt(0.5F);
  EXPECT_NEAR(averaged[0][0].item<float>(), half, 1e-6);
  EXPECT_NEAR(averaged[0][1].item<float>(), half, 1e-6);
}

TEST(ZeroShotMeterTest, CountsTopOneTopFiveAndRecallOfUnevenClasses) {
  ZeroShotMeter meter(7);
  // Row scores fall from class 0 to class 6, so the right class has rank `label`.
  const auto scores = at::arange(7, 0, -1).to(at::kFloat).unsqueeze(0).expand({4, 7});
  meter.add(scores, at::tensor({0, 0, 4, 5}, at::kLong));
  const auto metrics = meter.metrics();
  EXPECT_EQ(metrics.num_samples, 4);
  EXPECT_DOUBLE_EQ(metrics.top1_accuracy, 0.5);
  EXPECT_DOUBLE_EQ(metrics.top5_accuracy, 0.75);
  EXPECT_DOUBLE_EQ(metrics.mean_per_class_recall, 1.0 / 3);  // classes 0, 4, 5: recalls 1, 0, 0
}

TEST(ZeroShotMeterTest, LetsTheFirstOfTiedClassesWin) {
  ZeroShotMeter meter(3);
  meter.add(at::zeros({3, 3}), at::tensor({0, 1, 2}, at::kLong));
  EXPECT_DOUBLE_EQ(meter.metrics().top1_accuracy, 1.0 / 3);
}

TEST(ZeroShotMeterTest, NeverCountsAScoreThatIsNotANumberAsAHit) {
  ZeroShotMeter meter(3);
  meter.add(at::full({2, 3}, std::numeric_limits<float>::quiet_NaN()), at::tensor({0, 1}, at::kLong));
  EXPECT_DOUBLE_EQ(meter.metrics().top1_accuracy, 0.0);
}

TEST(ZeroShotMeterTest, GivesZeroesForNoSamples) {
  EXPECT_EQ(ZeroShotMeter(3).metrics().num_samples, 0);
}

}  // namespace
}  // namespace contrastive::eval
