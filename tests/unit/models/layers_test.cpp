#include "contrastive/models/layers.h"

#include <cmath>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "contrastive/models/precision.h"

#include "tests/support/tensors.h"

namespace contrastive::models {
namespace {

at::Generator seeded(uint64_t seed) {
  return at::detail::createCPUGenerator(seed);
}

TEST(PatchEmbeddingTest, EqualsAStridedConvolution) {
  PatchEmbedding module(4, 10, at::kCPU);
  auto generator = seeded(1);
  module->reset_parameters(generator);
  const auto images = test::random_normal({3, 3, 8, 12}, 2);
  const auto expected = at::conv2d(images, module->weight, {}, 4).flatten(2).transpose(1, 2);
  EXPECT_TRUE(test::tensors_near("patches", module->forward(images), expected, {1e-5, 0}));
  const auto channels_last = images.contiguous(at::MemoryFormat::ChannelsLast);
  EXPECT_TRUE(test::tensors_near("patches", module->forward(channels_last), expected, {1e-5, 0}));
}

TEST(PatchEmbeddingTest, GivesNoGradientToThePixels) {
  PatchEmbedding module(4, 10, at::kCPU);
  auto generator = seeded(1);
  module->reset_parameters(generator);
  const auto images = test::random_normal({1, 3, 8, 8}, 2).requires_grad_();
  module->forward(images).sum().backward();
  EXPECT_FALSE(images.grad().defined());
  EXPECT_TRUE(module->weight.grad().defined());
}

TEST(BatchNorm2dTest, RunningStatisticsFollowTheUnbiasedVarianceWithMomentum) {
  BatchNorm2d module(4, at::kCPU);
  module->reset_parameters();
  const auto x = test::random_normal({3, 4, 5, 5}, 3) * 2 + 1;
  module->train();
  module->forward(x);
  EXPECT_TRUE(test::tensors_near("mean", module->running_mean, x.mean({0, 2, 3}) * 0.1, {1e-6, 0}));
  EXPECT_TRUE(test::tensors_near("var", module->running_var, x.var({0, 2, 3}, true) * 0.1 + 0.9, {1e-6, 0}));
  EXPECT_EQ(module->num_batches_tracked.item<int64_t>(), 1);
  module->eval();
  module->forward(x);
  EXPECT_EQ(module->num_batches_tracked.item<int64_t>(), 1);
}

TEST(LayerNormTest, KeepsTheDtypeOfItsInputAndComputesInFp32) {
  LayerNorm module(64, at::kCPU);
  module->reset_parameters();
  const auto x = test::random_normal({5, 64}, 4) * 3 + 20;
  const auto half = x.to(at::kBFloat16);
  const auto y = module->forward(half);
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(test::tensors_near("rows", y, module->forward(half.to(at::kFloat)), {0.02, 0}));
}

TEST(LayersTest, ConstructionOnTheMetaDeviceTakesNoMemory) {
  const Linear module(1 << 20, 1 << 20, at::kMeta);
  EXPECT_EQ(module->weight.numel(), int64_t{1} << 40);
  EXPECT_TRUE(module->weight.is_meta());
}

TEST(LayersTest, InitialisationIsUniformByFanIn) {
  auto generator = seeded(5);
  Linear linear(64, 1000, at::kCPU);
  linear->reset_parameters(generator);
  Conv2d conv(16, 128, 3, 1, at::kCPU);
  conv->reset_parameters(generator);
  const auto expect_uniform = [](const torch::Tensor& values, double bound) {
    EXPECT_LE(values.abs().max().item<double>(), bound);
    EXPECT_NEAR(values.std().item<double>(), bound / std::sqrt(3.0), 0.03 * bound);
  };
  expect_uniform(linear->weight, 0.125);
  expect_uniform(linear->bias, 0.125);
  expect_uniform(conv->weight, 1.0 / 12);
}

}  // namespace
}  // namespace contrastive::models
