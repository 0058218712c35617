#include "contrastive/eval/few_shot.h"

#include <set>
#include <string>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/data/synthetic.h"

#include "tests/support/errors.h"
#include "tests/support/tensors.h"

namespace contrastive::eval {
namespace {

/// The formula as it stands, by torch's general solver.
torch::Tensor reference_weights(const torch::Tensor& features, const torch::Tensor& labels, int64_t classes,
                                double l2) {
  const auto centred = features - features.mean(0, true);
  const auto std = centred.square().mean(0, true).sqrt() + 1e-5;
  const auto x = at::cat({centred / std, at::full({features.size(0), 1}, 100.0, at::kDouble)}, 1);
  auto y = at::full({features.size(0), classes}, -1.0, at::kDouble);
  y.scatter_(1, labels.unsqueeze(1), 1.0);
  const auto system = x.t().matmul(x) + l2 * at::eye(x.size(1), at::kDouble);
  return at::linalg_solve(system, x.t().matmul(y));
}

TEST(LinearRegressionTest, EqualsTheFormulaWithMoreAndWithFewerSamplesThanFeatures) {
  for (const int64_t samples : {5, 40}) {
    const auto features = test::random_normal({samples, 12}, 1, at::kDouble) * 3 + 2;
    const auto labels = at::arange(samples) % 4;
    const LinearRegression regression(features, labels, 4, 10.0);
    EXPECT_TRUE(test::tensors_near("weights", regression.weights(), reference_weights(features, labels, 4, 10.0),
                                   {1e-10, 1e-9}))
        << samples;
  }
}

TEST(LinearRegressionTest, SeparatesWhatIsSeparable) {
  const auto centres = at::eye(3, at::kDouble) * 4;
  const auto labels = at::arange(60) % 3;
  const auto draw = [&](uint64_t seed) {
    return centres.index_select(0, labels) + test::random_normal({60, 3}, seed, at::kDouble) * 0.3;
  };
  const LinearRegression regression(draw(1), labels, 3);
  EXPECT_EQ(top1_share(regression.scores(draw(2)), labels), 1.0);
}

TEST(LinearRegressionTest, AFeatureThatNeverChangesIsHarmless) {
  auto features = test::random_normal({20, 4}, 3);
  features.select(1, 2).fill_(7);
  const LinearRegression regression(features, at::arange(20) % 2, 2);
  EXPECT_TRUE(regression.scores(features).isfinite().all().item<bool>());
}

TEST(LinearRegressionTest, RefusesLabelsOutsideOfTheClasses) {
  const auto features = test::random_normal({4, 3}, 4);
  EXPECT_THROW(LinearRegression(features, at::arange(4), 3), c10::Error);
  EXPECT_THROW(LinearRegression(features, at::arange(3), 3), c10::Error);
  EXPECT_THROW(LinearRegression(features, at::arange(4), 4, 0.0), c10::Error);
}

TEST(DrawShotsTest, FewerShotsAreTheFirstOfMore) {
  const auto labels = at::arange(300) % 7;
  const auto many = draw_shots(labels, 7, 10, 2).view({7, 10}), few = draw_shots(labels, 7, 3, 2).view({7, 3});
  EXPECT_TRUE(test::tensors_equal("shots", many.narrow(1, 0, 3), few));
  for (int64_t label = 0; label < 7; ++label) {
    EXPECT_TRUE(labels.index_select(0, many[label]).eq(label).all().item<bool>());
    const auto* row = many[label].data_ptr<int64_t>();
    EXPECT_EQ(std::set<int64_t>(row, row + 10).size(), 10U);
  }
}

TEST(DrawShotsTest, SeedsAndClassesDrawDifferently) {
  const auto labels = at::arange(400) % 4;
  const auto draw = [&](int64_t seed) { return draw_shots(labels, 4, 20, seed); };
  EXPECT_TRUE(at::equal(draw(1), draw(1)));
  EXPECT_FALSE(at::equal(draw(1), draw(2)));
  const auto places = at::div(draw(1).view({4, 20}), 4, "floor");
  EXPECT_FALSE(at::equal(places[0], places[1]));
}

TEST(DrawShotsTest, AClassWithFewSamplesGivesWhatItHas) {
  const auto labels = test::indices({0, 0, 2, 0});
  EXPECT_EQ(draw_shots(labels, 3, 2, 0).numel(), 3);
  EXPECT_EQ(draw_shots(labels, 3, 2, 0)[2].item<int64_t>(), 2);
}

class FewShotTest : public ::testing::Test {
 protected:
  static models::ClipModel model() {
    models::ModelConfig config;
    config.embed_dim = 16;
    config.vision_cfg.layers = {1};
    config.vision_cfg.width = 32;
    config.vision_cfg.head_width = 16;
    config.vision_cfg.patch_size = 8;
    config.vision_cfg.image_size = 32;
    config.text_cfg.layers = 1;
    config.text_cfg.width = 16;
    config.text_cfg.heads = 2;
    models::ClipModel made(config);
    made->reset_parameters(at::detail::createCPUGenerator(1));
    return made;
  }

  static data::ClassificationSet synthetic(int64_t samples) {
    return data::synthetic_classification({.samples = samples, .image_size = 32});
  }

  static image::PreprocessSpec preprocess() {
    image::PreprocessSpec spec;
    spec.size = 32;
    return spec;
  }
};

TEST_F(FewShotTest, GivesTheSameForAnyBatchSizeAndLearnsMoreThanChance) {
  auto tower = model();
  tower->train();
  const auto train = synthetic(600), test = synthetic(200);
  const auto small =
      evaluate_few_shot(tower, preprocess(), train, test, {.shots = {1, 10}, .seeds = 2, .pass = {.batch_size = 7}});
  const auto large =
      evaluate_few_shot(tower, preprocess(), train, test, {.shots = {1, 10}, .seeds = 2, .pass = {.batch_size = 500}});
  EXPECT_TRUE(tower->is_training());
  ASSERT_EQ(small.size(), 2U);
  EXPECT_EQ(small[1].shots, 10);
  EXPECT_EQ(small[1].accuracies.size(), 2U);
  for (size_t i = 0; i < 2; ++i) {
    for (size_t seed = 0; seed < 2; ++seed) EXPECT_NEAR(small[i].accuracies[seed], large[i].accuracies[seed], 0.011);
  }
  EXPECT_GT(small[1].mean(), 2.0 / static_cast<double>(train.class_names.size()));
}

TEST_F(FewShotTest, SetsOfDifferentClassesAreRefused) {
  auto tower = model();
  auto other = synthetic(10);
  other.class_names.back() = "something else";
  const auto message =
      test::message_of<DataError>([&] { evaluate_few_shot(tower, preprocess(), synthetic(10), other, {}); });
  EXPECT_NE(message.find("must be the same"), std::string::npos) << message;
  EXPECT_NE(test::message_of<ConfigError>([&] {
              evaluate_few_shot(tower, preprocess(), synthetic(10), synthetic(10), {.shots = {0}});
            }).find("shots must be"),
            std::string::npos);
}

}  // namespace
}  // namespace contrastive::eval
