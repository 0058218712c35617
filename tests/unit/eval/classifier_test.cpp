#include "contrastive/eval/classifier.h"

#include <cmath>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/eval/zero_shot.h"
#include "contrastive/text/clip_tokenizer.h"

#include "tests/support/paths.h"

namespace contrastive::eval {
namespace {

constexpr const char* kModel = R"({"embed_dim": 12,
  "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1},
  "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}})";

LoadedModel make_model() {
  LoadedModel loaded{.model = models::ClipModel(models::load_model_config(parse_config(kModel, "test"))),
                     .preprocess = {},
                     .folder = {}};
  loaded.model->reset_parameters(at::make_generator<at::CPUGeneratorImpl>(uint64_t{5}));
  return loaded;
}

ZeroShotClassifier two_axes(std::optional<double> bias = {}) {
  return {{"right", "up", "left"}, at::tensor({1.0F, 0.0F, 0.0F, 1.0F, -1.0F, 0.0F}).view({3, 2}), 10.0, bias};
}

TEST(ZeroShotClassifierTest, GivesSoftmaxProbabilitiesBestFirst) {
  const auto features = at::tensor({0.6F, 0.8F}).view({1, 2});
  const auto predictions = two_axes().classify(features, 2);
  ASSERT_EQ(predictions.size(), 1U);
  ASSERT_EQ(predictions[0].size(), 2U);
  const double sum = std::exp(6.0) + std::exp(8.0) + std::exp(-6.0);
  EXPECT_EQ(predictions[0][0].name, "up");
  EXPECT_EQ(predictions[0][0].label, 1);
  EXPECT_NEAR(predictions[0][0].probability, std::exp(8.0) / sum, 1e-6);
  EXPECT_EQ(predictions[0][1].name, "right");
  EXPECT_NEAR(predictions[0][1].probability, std::exp(6.0) / sum, 1e-6);
  EXPECT_EQ(two_axes().classify(features)[0].size(), 3U);
}

TEST(ZeroShotClassifierTest, GivesSigmoidsWhereTheModelHasABias) {
  const auto features = at::tensor({0.6F, 0.8F}).view({1, 2});
  const auto predictions = two_axes(-7.0).classify(features, 1);
  EXPECT_NEAR(predictions[0][0].probability, 1 / (1 + std::exp(-1.0)), 1e-6);
}

TEST(ZeroShotClassifierTest, GivesTheFirstOfTiedClasses) {
  const auto predictions = two_axes().classify(at::tensor({std::sqrt(0.5F), std::sqrt(0.5F)}).view({1, 2}), 2);
  EXPECT_EQ(predictions[0][0].label, 0);
  EXPECT_EQ(predictions[0][1].label, 1);
}

TEST(ZeroShotClassifierTest, HasTheWeightsOfTheEvaluation) {
  const auto tokenizer = std::make_shared<const text::ClipTokenizer>(test::merges_file());
  const std::vector<std::string> names{"cat", "dog", "old car"};
  const std::vector<std::string> templates{"a photo of a {}.", "a drawing of the {c}"};
  EncoderOptions options;
  options.device = torch::kCPU;
  const ZeroShotClassifier classifier(Encoder(make_model(), tokenizer, options), names, templates);
  auto loaded = make_model();
  const auto expected = build_classifier(loaded.model, *tokenizer, fill_templates("", names, templates), {}).rows;
  EXPECT_LT((classifier.weights() - expected).abs().max().item<float>(), 1e-6);
  EXPECT_EQ(classifier.class_names(), names);
}

TEST(ZeroShotClassifierTest, RefusesWhatDoesNotFit) {
  const std::vector<std::string> templates{"a photo of a {}."};
  const std::vector<std::string> without_place{"a photo"};
  const Encoder encoder(make_model(), std::make_shared<const text::ClipTokenizer>(test::merges_file()));
  EXPECT_THROW(ZeroShotClassifier(encoder, {}, templates), DataError);
  EXPECT_THROW(ZeroShotClassifier(encoder, {"cat"}, {}), DataError);
  EXPECT_THROW(ZeroShotClassifier(encoder, {"cat"}, without_place), DataError);
  EXPECT_THROW(ZeroShotClassifier({"cat"}, at::ones({2, 3}), 1.0), c10::Error);
  EXPECT_THROW(two_axes().logits(at::ones({1, 3})), c10::Error);
}

}  // namespace
}  // namespace contrastive::eval
