#include "contrastive/models/mlp_mixer.h"

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

/// That of fixtures/towers/mlp_mixer.
VisionConfig small() {
  return {.layers = {2},
          .width = 16,
          .mlp_ratio = 2.5,
          .patch_size = 8,
          .image_size = 24,
          .norm_eps = 1e-6,
          .timm_model_name = "mixer_b16_224",
          .token_mlp_width = 12};
}

MlpMixer tower(const VisionConfig& config, Activation activation = Activation::gelu) {
  MlpMixer module(config, 24, activation, at::kCPU);
  auto generator = at::detail::createCPUGenerator(1);
  module->reset_parameters(generator);
  return module;
}

TEST(MlpMixerTest, HasTheParametersFeaturesAndGradientsOfTimms) {
  const test::TowerFixture fixture("mlp_mixer");
  for (const bool checkpoint : {false, true}) {
    auto module = tower(small());
    fixture.load(*module, at::kDouble);
    module->checkpoint_activations(checkpoint);
    const auto features = module->forward_features(fixture.at("images").to(at::kDouble));
    fixture.expect_results(*module, features, {0, 1e-12}, {1e-12, 1e-6});
  }
}

TEST(MlpMixerTest, HasThemInFp32) {
  const test::TowerFixture fixture("mlp_mixer");
  auto module = tower(small());
  fixture.load(*module, at::kFloat);
  fixture.expect_results(*module, module->forward_features(fixture.at("images")), {0, 1e-5}, {1e-6, 1e-5});
}

TEST(MlpMixerTest, TheActivationIsTheGivenOne) {
  const test::TowerFixture fixture("mlp_mixer");
  auto module = tower(small(), Activation::gelu_tanh);
  fixture.load(*module, at::kDouble);
  const auto features = module->forward_features(fixture.at("images").to(at::kDouble));
  EXPECT_FALSE(test::tensors_near("features", features, fixture.at("features"), {0, 1e-6}));
}

TEST(MlpMixerTest, ProjectsOnlyIfTheConfigSaysSo) {
  const auto images = test::random_normal({2, 3, 24, 24}, 1);
  EXPECT_FALSE(tower(small())->has_head());
  EXPECT_EQ(tower(small())->forward(images).sizes(), at::IntArrayRef({2, 16}));
  auto config = small();
  config.proj_type = "linear";
  auto module = tower(config);
  EXPECT_TRUE(module->has_head());
  EXPECT_EQ(module->forward(images).sizes(), at::IntArrayRef({2, 24}));
  EXPECT_TRUE(module->named_parameters().contains("head.proj.weight"));
  EXPECT_FALSE(module->named_parameters().contains("head.proj.bias"));
}

TEST(MlpMixerTest, LayerGroupsAreTheStemAndTheBlocks) {
  auto config = small();
  config.proj_type = "linear";
  config.proj_bias = true;
  auto module = tower(config);
  EXPECT_EQ(module->num_layer_groups(), 3);
  EXPECT_EQ(module->layer_group("trunk.stem.proj.bias"), 0);
  EXPECT_EQ(module->layer_group("trunk.blocks.1.mlp_tokens.fc1.weight"), 2);
  EXPECT_EQ(module->layer_group("trunk.norm.weight"), 2);
  EXPECT_EQ(module->layer_group("head.proj.bias"), kHeadGroup);
  test::expect_all_in_layer_groups(*module);
}

TEST(MlpMixerTest, RefusesImagesOfOtherSizes) {
  EXPECT_THROW(tower(small())->forward(at::zeros({3, 3, 32, 32})), c10::Error);
}

TEST(MlpMixerTest, UnderAutocastEveryGradientIsFiniteAndFp32) {
  auto module = tower(small());
  torch::Tensor features;
  {
    const AutocastGuard guard(at::kCPU, true);
    features = module->forward(test::random_normal({4, 3, 24, 24}, 5));
  }
  features.to(at::kFloat).square().sum().backward();
  for (const auto& item : module->named_parameters()) {
    ASSERT_TRUE(item.value().grad().defined()) << item.key();
    EXPECT_EQ(item.value().grad().scalar_type(), at::kFloat) << item.key();
    EXPECT_TRUE(item.value().grad().isfinite().all().item<bool>()) << item.key();
  }
}

}  // namespace
}  // namespace contrastive::models
