#include "train/train_step.h"

#include <string>
#include <tuple>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "contrastive/loss/contrastive_loss.h"

#include "tests/support/tensors.h"

namespace contrastive::train::detail {
namespace {

constexpr int64_t kRows = 12;
constexpr uint64_t kSeed = 41;

models::ModelConfig vit() {
  models::ModelConfig config;
  config.embed_dim = 8;
  config.vision_cfg = {.layers = {2}, .width = 16, .head_width = 8, .patch_size = 4, .image_size = 16};
  config.vision_cfg.patch_dropout = 0.5;
  config.text_cfg = {.context_length = 6, .vocab_size = 20, .width = 16, .heads = 2, .layers = 1};
  return config;
}

models::ModelConfig resnet() {
  auto config = vit();
  config.vision_cfg = {.layers = {1, 1, 1, 1}, .width = 4, .head_width = 16, .image_size = 32};
  return config;
}

models::ClipModel make_model(const models::ModelConfig& config) {
  models::ClipModel model(config);
  model->reset_parameters(at::make_generator<at::CPUGeneratorImpl>(uint64_t{5}));
  model->to(at::kDouble);
  model->train();
  return model;
}

data::Batch make_batch(int64_t image_size) {
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(uint64_t{6});
  return {.images = at::randint(0, 256, {kRows, image_size, image_size, 3}, generator, at::kByte),
          .tokens = at::randint(0, 20, {kRows, 6}, generator, at::kLong)};
}

struct Outcome {
  StepResult result;
  models::ClipModel model{nullptr};
};

Outcome run(const models::ModelConfig& config, int64_t accumulate) {
  Outcome outcome;
  outcome.model = make_model(config);
  TrainStep step(outcome.model, {.size = config.vision_cfg.image_size}, {.accumulate = accumulate});
  outcome.result = step.forward_backward(make_batch(config.vision_cfg.image_size), kSeed);
  return outcome;
}

class TrainStepTest : public ::testing::TestWithParam<std::tuple<bool, int64_t>> {
 protected:
  models::ModelConfig config() const {
    auto result = vit();
    if (std::get<0>(GetParam())) result.init_logit_bias = -3;
    return result;
  }
};

// With patch dropout, whose draws must be those of the whole batch.
TEST_P(TrainStepTest, ABatchInPartsHasTheLossAndGradientsOfTheWhole) {
  const auto whole = run(config(), 1), parts = run(config(), std::get<1>(GetParam()));
  EXPECT_NEAR(parts.result.loss, whole.result.loss, 1e-12);
  EXPECT_EQ(parts.result.accuracy, whole.result.accuracy);
  EXPECT_NEAR(parts.result.grad_norm, whole.result.grad_norm, 1e-12);
  const auto expected = test::by_name(whole.model->named_trainable());
  for (const auto& [name, parameter] : parts.model->named_trainable()) {
    ASSERT_TRUE(parameter.grad().defined()) << name;
    EXPECT_TRUE(test::tensors_near(name, parameter.grad(), expected.at(name).grad(), {1e-13, 1e-11}));
  }
}

INSTANTIATE_TEST_SUITE_P(LossesAndParts, TrainStepTest,
                         ::testing::Combine(::testing::Bool(), ::testing::Values(2, 3, 12)), [](const auto& item) {
                           return std::string(std::get<0>(item.param) ? "sigmoid" : "softmax") + "_in_" +
                                  std::to_string(std::get<1>(item.param));
                         });

TEST(TrainStepBuffersTest, RunningStatisticsMoveOnceAPart) {
  const auto model = run(resnet(), 3).model;
  const auto reference = make_model(resnet());
  const auto batch = make_batch(32);
  for (int64_t begin = 0; begin < kRows; begin += kRows / 3) {
    TrainStep step(reference, {.size = 32}, {});
    step.forward_backward(
        {.images = batch.images.narrow(0, begin, kRows / 3), .tokens = batch.tokens.narrow(0, begin, kRows / 3)},
        kSeed);
  }
  const auto expected = test::by_name(reference->state());
  for (const auto& [name, buffer] : test::by_name(model->state())) {
    if (name.find("running") == std::string::npos && !name.ends_with("tracked")) continue;
    EXPECT_TRUE(test::tensors_near(name, buffer, expected.at(name), {1e-13, 1e-12}));
  }
}

TEST(TrainStepBuffersTest, RestoringGoesBackToBeforeTheStep) {
  auto model = make_model(resnet());
  const auto before = model->visual->named_buffers()["bn1.running_mean"].clone();
  TrainStep step(model, {.size = 32}, {.restorable = true, .accumulate = 2});
  step.forward_backward(make_batch(32), kSeed);
  EXPECT_FALSE(at::equal(model->visual->named_buffers()["bn1.running_mean"], before));
  step.restore_buffers();
  EXPECT_TRUE(at::equal(model->visual->named_buffers()["bn1.running_mean"], before));
}

}  // namespace
}  // namespace contrastive::train::detail
