#include <cmath>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include "contrastive/models/layers.h"

#include "tests/support/tensors.h"

namespace contrastive::models {
namespace {

/// What a training step does.
enum class Kind { kPlain, kRelu, kAddRelu };

const std::vector<Kind>& all_kinds() {
  static const std::vector<Kind> kinds{Kind::kPlain, Kind::kRelu, Kind::kAddRelu};
  return kinds;
}

/// Outputs, gradients and running statistics of one training step. torch's own in fp64 and its default order is the
/// reference.
struct Step {
  torch::Tensor y, x_gradient, shortcut_gradient, weight_gradient, bias_gradient, running_mean, running_var;
};

struct Inputs {
  torch::Tensor x, shortcut, weight, bias, gradient;  ///< fp64
};

/// Channels with means far from 0 beside their deviation. The numbers are those of `dtype`.
Inputs make_inputs(int64_t channels, int64_t side, at::ScalarType dtype = at::kDouble) {
  const auto offsets = test::random_normal({channels}, 7, at::kDouble) * 10;
  const auto rounded = [&](const torch::Tensor& values) { return values.to(dtype).to(at::kDouble); };
  const auto random = [&](uint64_t seed) { return test::random_normal({3, channels, side, side}, seed, at::kDouble); };
  return {rounded(random(1) + offsets.view({-1, 1, 1})), rounded(random(5)),
          test::random_normal({channels}, 2, at::kDouble), test::random_normal({channels}, 3, at::kDouble),
          rounded(random(4))};
}

Step reference(const Inputs& inputs, Kind kind = Kind::kPlain) {
  const auto x = inputs.x.clone().requires_grad_(), weight = inputs.weight.clone().requires_grad_();
  const auto bias = inputs.bias.clone().requires_grad_(), shortcut = inputs.shortcut.clone().requires_grad_();
  auto mean = at::zeros_like(bias.detach()), var = at::ones_like(bias.detach());
  auto y = at::batch_norm(x, weight, bias, mean, var, true, 0.1, 1e-5, false);
  if (kind == Kind::kAddRelu) y = y + shortcut;
  if (kind != Kind::kPlain) y = y.relu();
  y.backward(inputs.gradient);
  return {y, x.grad(), shortcut.grad(), weight.grad(), bias.grad(), mean, var};
}

/// The layer has weights of its dtype, but fp32 ones for bf16, as under autocast.
BatchNorm2d layer(const Inputs& inputs, at::ScalarType dtype) {
  BatchNorm2d module(inputs.x.size(1), at::kCPU);
  module->to(at::promote_types(dtype, at::kFloat));
  module->reset_parameters();
  const at::NoGradGuard no_grad;
  module->weight.copy_(inputs.weight);
  module->bias.copy_(inputs.bias);
  return module;
}

Step ours(const Inputs& inputs, at::ScalarType dtype, Kind kind = Kind::kPlain,
          at::MemoryFormat order = at::MemoryFormat::ChannelsLast) {
  auto module = layer(inputs, dtype);
  const auto leaf = [&](const torch::Tensor& values) {
    return values.to(dtype, false, /*copy=*/true).contiguous(order).requires_grad_();
  };
  const auto x = leaf(inputs.x), shortcut = leaf(inputs.shortcut);
  const auto y = kind == Kind::kPlain  ? module->forward(x)
                 : kind == Kind::kRelu ? module->forward_relu(x)
                                       : module->forward_relu(x, shortcut);
  EXPECT_TRUE(y.is_contiguous(order));
  EXPECT_EQ(y.scalar_type(), dtype);
  y.backward(inputs.gradient.to(dtype));
  EXPECT_EQ(module->num_batches_tracked.item<int64_t>(), 1);
  return {y,
          x.grad(),
          shortcut.grad(),
          module->weight.grad(),
          module->bias.grad(),
          module->running_mean,
          module->running_var};
}

void expect_near(const Step& actual, const Step& expected, double relative) {
  const auto expect = [&](const char* name, const torch::Tensor& a, const torch::Tensor& b) {
    EXPECT_TRUE(test::tensors_near(name, a.to(at::kDouble), b, {0, relative}));
  };
  expect("y", actual.y, expected.y);
  expect("x gradient", actual.x_gradient, expected.x_gradient);
  ASSERT_EQ(actual.shortcut_gradient.defined(), expected.shortcut_gradient.defined());
  if (actual.shortcut_gradient.defined()) {
    expect("shortcut gradient", actual.shortcut_gradient, expected.shortcut_gradient);
  }
  expect("weight gradient", actual.weight_gradient, expected.weight_gradient);
  expect("bias gradient", actual.bias_gradient, expected.bias_gradient);
  expect("running mean", actual.running_mean, expected.running_mean);
  expect("running variance", actual.running_var, expected.running_var);
}

// 19 channels leave a rest beside whole vectors; 64 x 40 x 40 values are many blocks.
TEST(BatchNormTest, TrainingInChannelsLastEqualsTorchInDoublePrecision) {
  for (const auto& [channels, side] : {std::pair<int64_t, int64_t>{19, 5}, {64, 40}, {1, 1}}) {
    const auto inputs = make_inputs(channels, side);
    for (const auto kind : all_kinds()) {
      SCOPED_TRACE(testing::Message() << channels << " channels, kind " << static_cast<int>(kind));
      expect_near(ours(inputs, at::kDouble, kind), reference(inputs, kind), 1e-12);
    }
  }
}

TEST(BatchNormTest, SinglePrecisionKeepsItsDigitsWhereMeansAreLarge) {
  const auto inputs = make_inputs(19, 40);
  expect_near(ours(inputs, at::kFloat), reference(inputs), 5e-6);
}

// A sign that rounding turns around would let a gradient through.
TEST(BatchNormTest, SinglePrecisionWithReluKeepsItsDigits) {
  for (const auto kind : {Kind::kRelu, Kind::kAddRelu}) {
    const auto inputs = make_inputs(19, 12, at::kFloat);
    expect_near(ours(inputs, at::kFloat, kind), reference(inputs, kind), 1e-5);
  }
}

// bf16 has 8 bits: results may be half a unit in the last place off (that of the largest number), and the shortcut's
// gradient is rounded before the sums.
TEST(BatchNormTest, Bf16IsRoundedOnceOnTheWayOut) {
  const test::Tolerance half_unit{1e-5, 1.0 / 256};
  for (const auto kind : all_kinds()) {
    SCOPED_TRACE(static_cast<int>(kind));
    const auto inputs = make_inputs(24, 16, at::kBFloat16);
    const auto actual = ours(inputs, at::kBFloat16, kind), expected = reference(inputs, kind);
    EXPECT_TRUE(test::tensors_near("y", actual.y.to(at::kDouble), expected.y, half_unit));
    EXPECT_TRUE(test::tensors_near("weight gradient", actual.weight_gradient.to(at::kDouble), expected.weight_gradient,
                                   {0, 1e-4}));
    EXPECT_TRUE(
        test::tensors_near("bias gradient", actual.bias_gradient.to(at::kDouble), expected.bias_gradient, {0, 1e-4}));
    EXPECT_TRUE(test::tensors_near("x gradient", actual.x_gradient.to(at::kDouble), expected.x_gradient, half_unit));
    EXPECT_EQ(actual.weight_gradient.scalar_type(), at::kFloat);
  }
}

TEST(BatchNormTest, OtherMemoryOrdersTakeTorchsOperations) {
  for (const auto kind : all_kinds()) {
    const auto inputs = make_inputs(19, 5);
    expect_near(ours(inputs, at::kDouble, kind, at::MemoryFormat::Contiguous), reference(inputs, kind), 1e-12);
  }
}

TEST(BatchNormTest, ReluKeepsNotANumber) {
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    auto inputs = make_inputs(19, 5);
    inputs.x[1][17][2][2] = NAN;
    auto module = layer(inputs, dtype);
    const auto order = at::MemoryFormat::ChannelsLast;
    const auto x = inputs.x.to(dtype).contiguous(order), shortcut = inputs.shortcut.to(dtype).contiguous(order);
    for (const auto& y : {module->forward_relu(x), module->forward_relu(x, shortcut)}) {
      EXPECT_TRUE(y.select(1, 17).isnan().all().item<bool>()) << dtype;
      EXPECT_TRUE(y.narrow(1, 0, 17).isfinite().all().item<bool>()) << dtype;
    }
  }
}

TEST(BatchNormTest, ReluOfEvaluationUsesTheRunningStatistics) {
  const auto inputs = make_inputs(19, 5);
  auto module = layer(inputs, at::kDouble);
  module->eval();
  const at::NoGradGuard no_grad;
  module->running_mean.fill_(0.5);
  module->running_var.fill_(4);
  const auto normalized = at::batch_norm(inputs.x, inputs.weight, inputs.bias, module->running_mean,
                                         module->running_var, false, 0.1, 1e-5, false);
  EXPECT_TRUE(test::tensors_near("relu", module->forward_relu(inputs.x), normalized.relu(), {0, 1e-13}));
  EXPECT_TRUE(test::tensors_near("add", module->forward_relu(inputs.x, inputs.shortcut),
                                 (normalized + inputs.shortcut).relu(), {0, 1e-13}));
  EXPECT_EQ(module->num_batches_tracked.item<int64_t>(), 0);
}

// A frozen bottleneck behind a trained one: the shortcut alone needs a gradient, or none of it does.
TEST(BatchNormTest, GradientsThatNobodyNeedsAreLeftOut) {
  const auto inputs = make_inputs(19, 5);
  auto module = layer(inputs, at::kDouble);
  module->weight.requires_grad_(false);
  module->bias.requires_grad_(false);
  const auto order = at::MemoryFormat::ChannelsLast;
  const auto x = inputs.x.contiguous(order), shortcut = inputs.shortcut.clone().contiguous(order).requires_grad_();
  EXPECT_FALSE(module->forward_relu(x).requires_grad());
  module->forward_relu(x, shortcut).backward(inputs.gradient);
  const auto expected = reference(inputs, Kind::kAddRelu);
  EXPECT_TRUE(test::tensors_near("shortcut", shortcut.grad(), expected.shortcut_gradient, {0, 1e-12}));
  EXPECT_FALSE(module->weight.grad().defined());
}

}  // namespace
}  // namespace contrastive::models
