#include "contrastive/eval/zero_shot.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/file.h"
#include "contrastive/core/safetensors.h"
#include "contrastive/models/clip_model.h"

#include "tests/support/paths.h"

namespace contrastive::eval {
namespace {

TEST(ZeroShotParityTest, EqualsOpenClipsClassifierAndAccuracies) {
  const auto fixtures = test::fixtures_dir();
  if (!fixtures) GTEST_SKIP() << "no parity fixtures here; set CONTRASTIVE_FIXTURES";
  const SafetensorsFile file(*fixtures / "zeroshot" / "classifier.safetensors");
  const auto document = nlohmann::json::parse(read_text_file(*fixtures / "zeroshot" / "classifier.json"));

  const auto classifier = average_prompts(file.tensor("text_features"));  // [C, E]
  const auto expected = file.tensor("weights").t();
  EXPECT_LE((classifier - expected).abs().max().item<float>(), 1e-6F);

  const auto scores = 100 * file.tensor("image_features").matmul(classifier.t());
  EXPECT_LE((scores - file.tensor("logits")).abs().max().item<float>(), 1e-4F);
  ClassificationMeter meter(classifier.size(0));
  meter.add(scores, file.tensor("target"));
  const auto metrics = meter.metrics();
  EXPECT_EQ(metrics.num_samples, file.tensor("target").size(0));
  EXPECT_NEAR(metrics.top1_accuracy, document.at("top1").get<double>(), 1e-9);
  EXPECT_NEAR(metrics.top5_accuracy, document.at("top5").get<double>(), 1e-9);
  EXPECT_NEAR(metrics.mean_per_class_recall, document.at("mean_per_class_recall").get<double>(), 1e-7)
      << "the reference averages in fp32";
}

}  // namespace
}  // namespace contrastive::eval
