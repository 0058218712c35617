#include "contrastive/models/vision_transformer.h"

#include <string>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include "contrastive/models/precision.h"

#include "tests/support/tensors.h"

namespace contrastive::models {
namespace {

VisionConfig small() {
  return {.layers = {2}, .width = 32, .head_width = 16, .patch_size = 8, .image_size = 32};
}

VisionTransformer tower(const VisionConfig& config, uint64_t seed = 1) {
  VisionTransformer module(config, 24, Activation::gelu, at::kCPU);
  auto generator = at::detail::createCPUGenerator(seed);
  module->reset_parameters(generator);
  return module;
}

TEST(VisionTransformerTest, MapsImagesToRowsOfTheEmbeddingWidth) {
  auto module = tower(small());
  EXPECT_EQ(module->forward(test::random_normal({5, 3, 32, 32}, 1)).sizes(), at::IntArrayRef({5, 24}));
  EXPECT_EQ(module->forward(test::random_normal({0, 3, 32, 32}, 1)).sizes(), at::IntArrayRef({0, 24}));
}

TEST(VisionTransformerTest, ImagesOfAnotherSizeAreRefusedWithBothSizes) {
  auto module = tower(small());
  try {
    module->forward(at::zeros({2, 3, 32, 40}));
    FAIL() << "no error";
  } catch (const c10::Error& error) {
    const std::string message = error.what_without_backtrace();
    EXPECT_NE(message.find("images must be floating point [B, 3, 32, 32], but are Float [2, 3, 32, 40]"),
              std::string::npos)
        << message;
  }
  EXPECT_THROW(module->forward(at::zeros({2, 3, 32, 32}, at::kByte)), c10::Error);
}

TEST(VisionTransformerTest, TheClassTokenPoolEqualsTheWholeTransformer) {
  auto module = tower(small());
  const auto images = test::random_normal({2, 3, 32, 32}, 2);
  auto x = at::cat({module->class_embedding.expand({2, 1, -1}), module->conv1->forward(images)}, 1);
  x = module->transformer->forward(module->ln_pre->forward(x + module->positional_embedding));
  const auto expected = module->ln_post->forward(x.select(1, 0)).matmul(module->proj);
  EXPECT_TRUE(test::tensors_near("features", module->forward(images), expected, {1e-5, 1e-5}));
}

TEST(VisionTransformerTest, MeanPoolingLeavesTheClassTokenOut) {
  auto config = small();
  config.pool_type = "avg";
  config.final_ln_after_pool = true;
  config.no_ln_pre = true;
  auto module = tower(config);
  const auto images = test::random_normal({2, 3, 32, 32}, 2);
  auto x = at::cat({module->class_embedding.expand({2, 1, -1}), module->conv1->forward(images)}, 1);
  x = module->transformer->forward(x + module->positional_embedding);
  const auto expected = module->ln_post->forward(x.slice(1, 1).mean(1)).matmul(module->proj);
  EXPECT_TRUE(test::tensors_near("features", module->forward(images), expected, {1e-5, 1e-5}));
  for (const auto& item : module->named_parameters()) EXPECT_EQ(item.key().find("ln_pre"), std::string::npos);
}

TEST(VisionTransformerTest, UnderAutocastItStaysCloseToFp32AndEveryGradientIsFinite) {
  auto module = tower(small());
  const auto images = test::random_normal({4, 3, 32, 32}, 3);
  const auto expected = module->forward(images);
  torch::Tensor actual;
  {
    const AutocastGuard guard(at::kCPU, true);
    actual = module->forward(images);
  }
  EXPECT_EQ(actual.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(test::tensors_near("features", actual, expected, {0, 0.05}));
  actual.to(at::kFloat).sum().backward();
  for (const auto& item : module->named_parameters()) {
    ASSERT_TRUE(item.value().grad().defined()) << item.key();
    EXPECT_EQ(item.value().grad().scalar_type(), at::kFloat) << item.key();
    EXPECT_TRUE(item.value().grad().isfinite().all().item<bool>()) << item.key();
  }
}

}  // namespace
}  // namespace contrastive::models
