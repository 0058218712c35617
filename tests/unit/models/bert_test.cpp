#include "contrastive/models/bert.h"

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

/// That of fixtures/towers/bert.
TextConfig small(bool gelu_tanh = false) {
  return {.context_length = 12,
          .vocab_size = 40,
          .width = 16,
          .heads = 2,
          .layers = 2,
          .mlp_ratio = 2.5,
          .proj_type = "none",
          .gelu_tanh = gelu_tanh,
          .norm_eps = 1e-12,
          .hf_model_name = "bert-base-uncased",
          .max_positions = 12};
}

TextConfig projected(bool bias) {
  auto config = small();
  config.proj_type = "linear";
  config.proj_bias = bias;
  return config;
}

Bert tower(const TextConfig& config) {
  Bert module(config, 24, at::kCPU);
  auto generator = at::detail::createCPUGenerator(1);
  module->reset_parameters(generator);
  return module;
}

std::string error_of(Bert& module, const torch::Tensor& tokens) {
  try {
    module->forward(tokens);
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

TEST(BertTest, HasTheParametersFeaturesAndGradientsOfTransformers) {
  for (const bool tanh : {false, true}) {
    const test::TowerFixture fixture(tanh ? "bert_tanh" : "bert");
    for (const bool checkpoint : {false, true}) {
      auto module = tower(small(tanh));
      fixture.load(*module, at::kDouble);
      module->checkpoint_activations(checkpoint);
      fixture.expect_results(*module, module->forward_features(fixture.at("tokens")), {0, 1e-12}, {1e-12, 1e-6});
    }
  }
}

TEST(BertTest, HasThemInFp32) {
  const test::TowerFixture fixture("bert");
  auto module = tower(small());
  fixture.load(*module, at::kFloat);
  fixture.expect_results(*module, module->forward_features(fixture.at("tokens")), {0, 1e-5}, {1e-5, 1e-5});
}

TEST(BertTest, PaddingChangesNothing) {
  auto module = tower(small());
  const auto tokens = test::random_normal({3, 6}, 1).mul(8).to(at::kLong).abs().add(1);
  const auto padded = at::cat({tokens, at::zeros({3, 5}, at::kLong)}, 1);
  const auto longer = at::cat({at::cat({tokens, at::full({3, 5}, 7, at::kLong)}, 1), padded});
  EXPECT_TRUE(test::tensors_equal("cut", module->forward(padded), module->forward(tokens)));
  EXPECT_TRUE(
      test::tensors_near("hidden", module->forward(longer).narrow(0, 3, 3), module->forward(tokens), {1e-6, 1e-5}));
}

TEST(BertTest, ThePaddingIsThatOfTheConfig) {
  auto config = small();
  config.pad_id = 5;
  auto module = tower(config);
  const auto tokens = torch::tensor({{7, 9, 5, 5}, {7, 9, 0, 0}}, at::kLong);
  const auto features = module->forward(tokens);
  EXPECT_TRUE(test::tensors_near("five", features.narrow(0, 0, 1),
                                 module->forward(tokens.slice(0, 0, 1).slice(1, 0, 2)), {1e-6, 1e-5}));
  EXPECT_FALSE(test::tensors_near("zero", features[1], features[0], {1e-4, 1e-4}));
}

TEST(BertTest, ARowOfPaddingAloneHasFiniteFeaturesAndGradients) {
  auto module = tower(small());
  const auto tokens = torch::tensor({{0, 0, 0}, {7, 9, 0}}, at::kLong);
  const auto features = module->forward(tokens);
  EXPECT_TRUE(features.isfinite().all().item<bool>());
  features.square().sum().backward();
  for (const auto& item : module->named_parameters()) {
    EXPECT_TRUE(item.value().grad().isfinite().all().item<bool>()) << item.key();
  }
  EXPECT_TRUE(module->forward(at::zeros({2, 4}, at::kLong)).isfinite().all().item<bool>());
  EXPECT_EQ(module->forward(at::zeros({0, 4}, at::kLong)).sizes(), at::IntArrayRef({0, 16}));
}

TEST(BertTest, ProjectsOnlyIfTheConfigSaysSo) {
  const auto tokens = torch::tensor({{7, 9, 0}}, at::kLong);
  EXPECT_FALSE(tower(small())->has_head());
  EXPECT_EQ(tower(small())->forward(tokens).sizes(), at::IntArrayRef({1, 16}));
  auto module = tower(projected(true));
  EXPECT_TRUE(module->has_head());
  EXPECT_EQ(module->forward(tokens).sizes(), at::IntArrayRef({1, 24}));
  EXPECT_TRUE(module->named_parameters().contains("proj.bias"));
  EXPECT_TRUE(tower(projected(false))->named_parameters().contains("proj.weight"));
  EXPECT_FALSE(tower(projected(false))->named_parameters().contains("proj.bias"));
}

TEST(BertTest, LayerGroupsAreTheEmbeddingsAndTheLayers) {
  auto module = tower(projected(true));
  EXPECT_EQ(module->num_layer_groups(), 3);
  EXPECT_EQ(module->layer_group("transformer.embeddings.LayerNorm.weight"), 0);
  EXPECT_EQ(module->layer_group("transformer.encoder.layer.1.attention.output.LayerNorm.bias"), 2);
  EXPECT_EQ(module->layer_group("proj.bias"), kHeadGroup);
  test::expect_all_in_layer_groups(*module);
}

TEST(BertTest, StartsWithWeightsOfStandardDeviationTwoHundredths) {
  const auto module = tower(small());
  const auto parameters = module->named_parameters();
  const auto& weight = parameters["transformer.encoder.layer.0.intermediate.dense.weight"];
  EXPECT_NEAR(weight.std().item<double>(), 0.02, 0.003);
  EXPECT_EQ(parameters["transformer.encoder.layer.1.output.dense.bias"].abs().max().item<double>(), 0);
  EXPECT_EQ(parameters["transformer.embeddings.LayerNorm.weight"].min().item<double>(), 1);
}

TEST(BertTest, RefusesTokensOutsideOfTheVocabularyAndTooLongRows) {
  auto module = tower(small());
  EXPECT_NE(error_of(module, torch::tensor({{7, 40}}, at::kLong)).find("token ids must be in [0, 40)"),
            std::string::npos);
  EXPECT_NE(error_of(module, at::zeros({1, 13}, at::kLong)).find("1 <= T <= 12"), std::string::npos);
}

TEST(BertTest, UnderAutocastEveryGradientIsFiniteAndFp32) {
  auto module = tower(projected(true));
  torch::Tensor features;
  {
    const AutocastGuard guard(at::kCPU, true);
    features = module->forward(torch::tensor({{7, 9, 3}, {7, 9, 0}}, at::kLong));
  }
  EXPECT_EQ(features.scalar_type(), at::kBFloat16);
  features.to(at::kFloat).square().sum().backward();
  for (const auto& item : module->named_parameters()) {
    ASSERT_TRUE(item.value().grad().defined()) << item.key();
    EXPECT_EQ(item.value().grad().scalar_type(), at::kFloat) << item.key();
    EXPECT_TRUE(item.value().grad().isfinite().all().item<bool>()) << item.key();
  }
}

}  // namespace
}  // namespace contrastive::models
