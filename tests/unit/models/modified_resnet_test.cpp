#include "contrastive/models/modified_resnet.h"

#include <cmath>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include "contrastive/models/precision.h"

#include "tests/support/tensors.h"

namespace contrastive::models {
namespace {

VisionConfig small() {
  return {.layers = {1, 2, 1, 1}, .width = 8, .head_width = 32, .image_size = 64};
}

ModifiedResNet tower() {
  ModifiedResNet module(small(), 24, at::kCPU);
  auto generator = at::detail::createCPUGenerator(1);
  module->reset_parameters(generator);
  return module;
}

TEST(ModifiedResNetTest, MapsImagesToRowsOfTheEmbeddingWidth) {
  EXPECT_EQ(tower()->forward(test::random_normal({3, 3, 64, 64}, 1)).sizes(), at::IntArrayRef({3, 24}));
  EXPECT_THROW(tower()->forward(at::zeros({3, 3, 32, 32})), c10::Error);
}

TEST(ModifiedResNetTest, OnlyBlocksThatChangeTheShapeHaveADownsample) {
  const auto parameters = tower()->named_parameters();
  EXPECT_TRUE(parameters.contains("layer1.0.downsample.0.weight"));
  EXPECT_TRUE(parameters.contains("layer2.0.downsample.1.bias"));
  EXPECT_FALSE(parameters.contains("layer2.1.downsample.0.weight"));
}

TEST(ModifiedResNetTest, ResidualBlocksStartAsTheirShortcut) {
  const auto parameters = tower()->named_parameters();
  const auto all_equal = [&](const char* name, float value) { return parameters[name].eq(value).all().item<bool>(); };
  EXPECT_TRUE(all_equal("layer1.0.bn3.weight", 0));
  EXPECT_TRUE(all_equal("layer2.1.bn3.weight", 0));
  EXPECT_TRUE(all_equal("bn3.weight", 1));
  EXPECT_TRUE(all_equal("layer1.0.downsample.1.weight", 1));
}

TEST(ModifiedResNetTest, EvalModeDoesNotDependOnTheRestOfTheBatch) {
  auto module = tower();
  module->eval();
  const at::NoGradGuard no_grad;
  const auto images = test::random_normal({4, 3, 64, 64}, 2);
  EXPECT_TRUE(test::tensors_near("row", module->forward(images.narrow(0, 2, 1)),
                                 module->forward(images).narrow(0, 2, 1), {1e-6, 1e-5}));
}

TEST(AttentionPool2dTest, EqualsTheFirstRowOfWholeMultiHeadAttention) {
  AttentionPool2d pool(2, 8, 2, 6, at::kCPU);
  auto generator = at::detail::createCPUGenerator(3);
  pool->reset_parameters(generator);
  const auto x = test::random_normal({3, 8, 2, 2}, 4);
  const auto places = x.flatten(2).transpose(1, 2);
  const auto tokens = at::cat({places.mean(1, true), places}, 1) + pool->positional_embedding;
  const auto heads_of = [](const torch::Tensor& y) { return y.view({3, 5, 2, 4}).transpose(1, 2); };
  const auto q = heads_of(pool->q_proj->forward(tokens)), k = heads_of(pool->k_proj->forward(tokens));
  const auto v = heads_of(pool->v_proj->forward(tokens));
  const auto attended = (q.matmul(k.transpose(2, 3)) / 2).softmax(-1).matmul(v).transpose(1, 2).reshape({3, 5, 8});
  EXPECT_TRUE(test::tensors_near("pool", pool->forward(x), pool->c_proj->forward(attended.select(1, 0)), {1e-5, 1e-5}));
  EXPECT_TRUE(test::tensors_near("places", pool->forward_places(x), attended, {1e-5, 1e-5}));
}

TEST(ModifiedResNetTest, PlacesComeAfterTheFeaturesRowByRow) {
  auto module = tower();
  module->eval();
  const at::NoGradGuard no_grad;
  const auto images = test::random_normal({2, 3, 64, 64}, 6);
  const auto all = module->forward_places(images);
  EXPECT_EQ(all.sizes(), at::IntArrayRef({2, 1 + 2 * 2, module->feature_width()}));
  EXPECT_TRUE(test::tensors_near("features", all.select(1, 0), module->forward_features(images), {1e-5, 1e-5}));
}

TEST(ModifiedResNetTest, UnderAutocastEveryGradientIsFiniteAndFp32) {
  auto module = tower();
  torch::Tensor features;
  {
    const AutocastGuard guard(at::kCPU, true);
    features = module->forward(test::random_normal({4, 3, 64, 64}, 5));
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
