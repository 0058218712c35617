#include "contrastive/models/bit_resnet.h"

#include <string>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include "contrastive/models/precision.h"

#include "tests/support/tensors.h"
#include "tests/support/tower_fixture.h"

namespace contrastive::models {
namespace {

/// That of fixtures/towers/bit_resnet.
VisionConfig small() {
  return {.layers = {1, 2}, .width = 8, .image_size = 40, .timm_model_name = "resnetv2_50x1_bit", .norm_groups = 4};
}

VisionConfig projected(bool bias) {
  auto config = small();
  config.proj_type = "linear";
  config.proj_bias = bias;
  return config;
}

BitResNet tower(const VisionConfig& config) {
  BitResNet module(config, 24, at::kCPU);
  auto generator = at::detail::createCPUGenerator(1);
  module->reset_parameters(generator);
  return module;
}

TEST(BitResNetTest, HasTheParametersFeaturesAndGradientsOfTimms) {
  const test::TowerFixture fixture("bit_resnet");
  auto module = tower(small());
  fixture.load(*module, at::kDouble);
  const auto features = module->forward_features(fixture.at("images").to(at::kDouble));
  fixture.expect_results(*module, features, {0, 1e-12}, {0, 1e-6});
}

TEST(BitResNetTest, HasThemInFp32) {
  const test::TowerFixture fixture("bit_resnet");
  auto module = tower(small());
  fixture.load(*module, at::kFloat);
  fixture.expect_results(*module, module->forward_features(fixture.at("images")), {0, 1e-5}, {1e-5, 1e-4});
}

TEST(BitResNetTest, CheckpointedBlocksGiveTheSameGradients) {
  const test::TowerFixture fixture("bit_resnet");
  auto module = tower(small());
  fixture.load(*module, at::kDouble);
  module->checkpoint_activations(true);
  const auto features = module->forward_features(fixture.at("images").to(at::kDouble));
  fixture.expect_results(*module, features, {0, 1e-12}, {0, 1e-6});
}

TEST(BitResNetTest, ProjectsOnlyIfTheConfigSaysSo) {
  const auto images = test::random_normal({2, 3, 40, 40}, 1);
  EXPECT_FALSE(tower(small())->has_head());
  EXPECT_EQ(tower(small())->forward(images).sizes(), at::IntArrayRef({2, 64}));
  auto with_bias = tower(projected(true));
  EXPECT_TRUE(with_bias->has_head());
  EXPECT_EQ(with_bias->forward(images).sizes(), at::IntArrayRef({2, 24}));
  EXPECT_TRUE(with_bias->named_parameters().contains("head.proj.bias"));
  const auto without = tower(projected(false))->named_parameters();
  EXPECT_TRUE(without.contains("head.proj.weight"));
  EXPECT_FALSE(without.contains("head.proj.bias"));
}

TEST(BitResNetTest, LayerGroupsAreTheStemAndTheStages) {
  auto module = tower(projected(true));
  EXPECT_EQ(module->num_layer_groups(), 3);
  EXPECT_EQ(module->layer_group("trunk.stem.conv.weight"), 0);
  EXPECT_EQ(module->layer_group("trunk.stages.0.blocks.0.downsample.conv.weight"), 1);
  EXPECT_EQ(module->layer_group("trunk.stages.1.blocks.1.norm1.bias"), 2);
  EXPECT_EQ(module->layer_group("trunk.norm.weight"), 2);
  EXPECT_EQ(module->layer_group("head.proj.weight"), kHeadGroup);
  test::expect_all_in_layer_groups(*module);
}

TEST(BitResNetTest, EpsilonIsAddedToTheVarianceOfTheWeights) {
  StdConv2d conv(2, 1, 1, 1, /*eps=*/3.0, at::kCPU);
  const at::NoGradGuard no_grad;
  conv->weight.copy_(torch::tensor({1.0F, 3.0F}).view({1, 2, 1, 1}));  // mean 2, variance 1: +-1 / sqrt(1 + 3)
  const auto result = conv->forward(torch::tensor({5.0F, 7.0F}).view({1, 2, 1, 1}));
  EXPECT_NEAR(result.item<float>(), -0.5 * 5 + 0.5 * 7, 1e-6);
}

TEST(BitResNetTest, RefusesImagesOfOtherSizes) {
  EXPECT_THROW(tower(small())->forward(at::zeros({3, 3, 32, 32})), c10::Error);
}

TEST(BitResNetTest, UnderAutocastEveryGradientIsFiniteAndFp32) {
  auto module = tower(projected(true));
  torch::Tensor features;
  const auto images = test::random_normal({4, 3, 40, 40}, 5);
  const auto expected = module->forward(images);
  {
    const AutocastGuard guard(at::kCPU, true);
    features = module->forward(images);
  }
  EXPECT_EQ(features.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(test::tensors_near("features", features, expected, {0, 0.05}));
  features.to(at::kFloat).square().sum().backward();
  for (const auto& item : module->named_parameters()) {
    ASSERT_TRUE(item.value().grad().defined()) << item.key();
    EXPECT_EQ(item.value().grad().scalar_type(), at::kFloat) << item.key();
    EXPECT_TRUE(item.value().grad().isfinite().all().item<bool>()) << item.key();
  }
}

}  // namespace
}  // namespace contrastive::models
