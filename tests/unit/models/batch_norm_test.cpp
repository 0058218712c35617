#include <string>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "contrastive/models/layers.h"

#include "tests/support/tensors.h"

namespace contrastive::models {
namespace {

/// Outputs, gradients and running statistics of one training step. torch's own in fp64 and its default order is the
/// reference.
struct Step {
  torch::Tensor y, x_gradient, weight_gradient, bias_gradient, running_mean, running_var;
};

struct Inputs {
  torch::Tensor x, weight, bias, gradient;  ///< fp64
};

/// Channels with means far from 0 beside their deviation.
Inputs make_inputs(int64_t channels, int64_t side) {
  const auto offsets = test::random_normal({channels}, 7, at::kDouble) * 10;
  return {test::random_normal({3, channels, side, side}, 1, at::kDouble) + offsets.view({-1, 1, 1}),
          test::random_normal({channels}, 2, at::kDouble), test::random_normal({channels}, 3, at::kDouble),
          test::random_normal({3, channels, side, side}, 4, at::kDouble)};
}

Step reference(const Inputs& inputs) {
  const auto x = inputs.x.clone().requires_grad_(), weight = inputs.weight.clone().requires_grad_();
  const auto bias = inputs.bias.clone().requires_grad_();
  auto mean = at::zeros_like(bias.detach()), var = at::ones_like(bias.detach());
  const auto y = at::batch_norm(x, weight, bias, mean, var, true, 0.1, 1e-5, false);
  y.backward(inputs.gradient);
  return {y, x.grad(), weight.grad(), bias.grad(), mean, var};
}

Step ours(const Inputs& inputs, at::ScalarType dtype) {
  BatchNorm2d module(inputs.x.size(1), at::kCPU);
  module->to(dtype);
  module->reset_parameters();
  {
    const at::NoGradGuard no_grad;
    module->weight.copy_(inputs.weight);
    module->bias.copy_(inputs.bias);
  }
  const auto x = inputs.x.to(dtype).contiguous(at::MemoryFormat::ChannelsLast).requires_grad_();
  const auto y = module->forward(x);
  EXPECT_TRUE(y.is_contiguous(at::MemoryFormat::ChannelsLast));
  y.backward(inputs.gradient.to(dtype));
  EXPECT_EQ(module->num_batches_tracked.item<int64_t>(), 1);
  return {y, x.grad(), module->weight.grad(), module->bias.grad(), module->running_mean, module->running_var};
}

void expect_near(const Step& actual, const Step& expected, double relative) {
  const auto expect = [&](const char* name, const torch::Tensor& a, const torch::Tensor& b) {
    EXPECT_TRUE(test::tensors_near(name, a, b, {0, relative}));
  };
  expect("y", actual.y, expected.y);
  expect("x gradient", actual.x_gradient, expected.x_gradient);
  expect("weight gradient", actual.weight_gradient, expected.weight_gradient);
  expect("bias gradient", actual.bias_gradient, expected.bias_gradient);
  expect("running mean", actual.running_mean, expected.running_mean);
  expect("running variance", actual.running_var, expected.running_var);
}

// 19 channels leave a rest beside whole vectors; 64 x 40 x 40 values are many blocks.
TEST(BatchNormTest, TrainingInChannelsLastEqualsTorchInDoublePrecision) {
  for (const auto& [channels, side] : {std::pair<int64_t, int64_t>{19, 5}, {64, 40}, {1, 1}}) {
    const auto inputs = make_inputs(channels, side);
    SCOPED_TRACE(std::to_string(channels));
    expect_near(ours(inputs, at::kDouble), reference(inputs), 1e-12);
  }
}

TEST(BatchNormTest, SinglePrecisionKeepsItsDigitsWhereMeansAreLarge) {
  const auto inputs = make_inputs(19, 40);
  expect_near(ours(inputs, at::kFloat), reference(inputs), 5e-6);
}

}  // namespace
}  // namespace contrastive::models
