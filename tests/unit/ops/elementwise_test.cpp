#include "contrastive/ops/elementwise.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/support/errors.h"
#include "tests/support/tensors.h"

namespace contrastive {
namespace {

using ops::Activation;
using test::random_normal;
using test::tensors_equal;
using test::tensors_near;

// Widths that are no multiple of a vector register, and fewer rows than parts they are shared out in.
constexpr int64_t kRows = 21, kWidth = 37;

struct Kind {
  Activation activation;
  const char* name;
};

class ActivationTest : public testing::TestWithParam<Kind> {};

INSTANTIATE_TEST_SUITE_P(Kinds, ActivationTest,
                         testing::Values(Kind{Activation::gelu, "gelu"}, Kind{Activation::gelu_tanh, "gelu_tanh"},
                                         Kind{Activation::quick_gelu, "quick_gelu"}),
                         [](const auto& each) { return each.param.name; });

torch::Tensor torch_activation(Activation activation, const torch::Tensor& x) {
  if (activation == Activation::quick_gelu) return x * (1.702 * x).sigmoid();
  return at::gelu(x, activation == Activation::gelu_tanh ? "tanh" : "none");
}

/// From deep in one tail to deep in the other.
torch::Tensor wide_values(torch::ScalarType dtype) {
  return at::linspace(-12, 12, kRows * kWidth, at::kDouble).view({kRows, kWidth}).to(dtype).contiguous();
}

TEST_P(ActivationTest, ValuesAndGradientsEqualTorchInDoublePrecision) {
  const auto x = wide_values(at::kDouble).requires_grad_();
  const auto bias = random_normal({kWidth}, 1, at::kDouble).requires_grad_();
  const auto gradient = random_normal({kRows, kWidth}, 2, at::kDouble);
  const auto expected = torch_activation(GetParam().activation, x + bias);
  expected.backward(gradient);
  EXPECT_TRUE(tensors_near("values", ops::activate(GetParam().activation, x.detach(), bias.detach()), expected.detach(),
                           {1e-14, 1e-14}));
  const auto actual = ops::activation_backward(GetParam().activation, gradient.clone(), x.detach(), bias.detach());
  EXPECT_TRUE(tensors_near("activated", actual.activated, expected.detach(), {1e-14, 1e-14}));
  EXPECT_TRUE(tensors_near("dx", actual.x, x.grad(), {1e-13, 1e-13}));
  EXPECT_TRUE(tensors_near("dbias", actual.bias, bias.grad(), {1e-13, 1e-13}));
}

TEST_P(ActivationTest, SinglePrecisionIsNearDouble) {
  const auto x = wide_values(at::kFloat), bias = at::zeros({kWidth}), gradient = random_normal({kRows, kWidth}, 2);
  const auto in_double = x.to(at::kDouble).requires_grad_();
  const auto expected = torch_activation(GetParam().activation, in_double);
  expected.backward(gradient.to(at::kDouble));
  const auto actual = ops::activation_backward(GetParam().activation, gradient.clone(), x, bias);
  EXPECT_TRUE(tensors_near("values", ops::activate(GetParam().activation, x, bias).to(at::kDouble), expected.detach(),
                           {0, 3e-7}));
  EXPECT_TRUE(tensors_near("dx", actual.x.to(at::kDouble), in_double.grad(), {0, 1e-6}));
}

TEST_P(ActivationTest, HalfPrecisionIsRoundedOnce) {
  const auto x = wide_values(at::kBFloat16), bias = random_normal({kWidth}, 1) * 0.1;
  const auto expected = torch_activation(GetParam().activation, x.to(at::kDouble) + bias.to(at::kDouble));
  const auto error = (ops::activate(GetParam().activation, x, bias).to(at::kDouble) - expected).abs();
  // Half a unit of 8 bits, of every single value; and what fp32 loses in the tails.
  EXPECT_TRUE((error <= expected.abs() / 256 + 2e-6).all().item<bool>());
}

TEST(LayerNormOpTest, BackwardEqualsTorchWithTheResidualAdded) {
  const auto x = random_normal({kRows, kWidth}, 1, at::kDouble).requires_grad_();
  const auto weight = random_normal({kWidth}, 2, at::kDouble).requires_grad_();
  const auto bias = random_normal({kWidth}, 3, at::kDouble).requires_grad_();
  const auto gradient = random_normal({kRows, kWidth}, 4, at::kDouble);
  const auto residual = random_normal({kRows, kWidth}, 5, at::kDouble);
  const auto expected = at::layer_norm(x, {kWidth}, weight, bias, 1e-5);
  expected.backward(gradient);
  const at::NoGradGuard no_grad;
  const auto forward = ops::layer_norm(x, weight, bias, 1e-5);
  EXPECT_TRUE(tensors_near("values", forward.values, expected, {1e-13, 1e-13}));
  const auto actual =
      ops::layer_norm_backward(gradient, residual, x.detach(), forward.mean, forward.inverse_std, weight, bias);
  EXPECT_TRUE(tensors_near("dx", actual.x, x.grad() + residual, {1e-12, 1e-12}));
  EXPECT_TRUE(tensors_near("dweight", actual.weight, weight.grad(), {1e-12, 1e-12}));
  EXPECT_TRUE(tensors_near("dbias", actual.bias, bias.grad(), {1e-12, 1e-12}));
  EXPECT_TRUE(tensors_near("values again", actual.values, expected, {1e-13, 1e-13}));
}

TEST(LayerNormOpTest, SingleAndHalfPrecisionAreNearDouble) {
  const auto x = random_normal({kRows, kWidth}, 1, at::kBFloat16),
             gradient = random_normal({kRows, kWidth}, 2, at::kBFloat16);
  const auto weight = random_normal({kWidth}, 3), bias = random_normal({kWidth}, 4);
  const auto run = [&](at::ScalarType dtype) {
    const auto vectors = dtype == at::kDouble ? at::kDouble : at::kFloat;
    const auto forward = ops::layer_norm(x.to(dtype), weight.to(vectors), bias.to(vectors), 1e-5);
    return ops::layer_norm_backward(gradient.to(dtype), at::zeros({kRows, kWidth}, dtype), x.to(dtype), forward.mean,
                                    forward.inverse_std, weight.to(vectors), bias.to(vectors));
  };
  const auto expected = run(at::kDouble);
  for (const auto& [dtype, relative] : {std::pair{at::kFloat, 1e-6}, std::pair{at::kBFloat16, 1.0 / 256}}) {
    const auto actual = run(dtype);
    EXPECT_TRUE(tensors_near("dx", actual.x.to(at::kDouble), expected.x, {0, relative}));
    EXPECT_TRUE(tensors_near("dweight", actual.weight.to(at::kDouble), expected.weight, {0, 2e-6}));
  }
}

TEST(ResidualOpTest, AddsInTheMemoryOfItsSecondInput) {
  const auto x = random_normal({kRows, kWidth}, 1), y = random_normal({kRows, kWidth}, 2),
             bias = random_normal({kWidth}, 3);
  const auto expected = x + (y + bias);
  const auto actual = ops::add_residual(x, y, bias);
  EXPECT_TRUE(tensors_near("sum", actual, expected, {1e-6, 0}));
  EXPECT_EQ(actual.const_data_ptr(), y.const_data_ptr());
}

TEST(ColumnSumsTest, EqualTorchAndDontDependOnTheThreads) {
  const auto x = random_normal({301, kWidth}, 1, at::kBFloat16);
  const auto sums = ops::column_sums(x);
  EXPECT_EQ(sums.scalar_type(), at::kFloat);
  EXPECT_TRUE(tensors_near("sums", sums.to(at::kDouble), x.to(at::kDouble).sum(0), {1e-4, 0}));
  const auto threads = at::get_num_threads();
  at::set_num_threads(threads == 1 ? 3 : 1);
  EXPECT_TRUE(tensors_equal("sums", ops::column_sums(x), sums));
  at::set_num_threads(threads);
}

TEST(ElementwiseOpsTest, SayWhatTheyExpectOfTheirInputs) {
  const auto x = at::zeros({2, 3}), bias = at::zeros({3});
  EXPECT_EQ(test::message_of<c10::Error>([&] {
              ops::activate(Activation::gelu, x.t(), bias);
            }).find("[activate] expected a contiguous matrix of fp32, fp64 or bf16 in CPU memory, found [3, 2]"),
            0U);
  EXPECT_EQ(test::message_of<c10::Error>([&] {
              ops::activate(Activation::gelu, x, at::zeros({2}));
            }).find("[activate] bias must be a contiguous [3] of Float in CPU memory, but is [2]"),
            0U);
  EXPECT_EQ(test::message_of<c10::Error>([&] {
              ops::add_residual(x, at::zeros({3, 3}), bias);
            }).find("[add_residual] y must be a contiguous [2, 3] Float in CPU memory, but is [3, 3]"),
            0U);
  EXPECT_FALSE(ops::has_kernels(at::zeros({2}, at::kHalf)));
}

}  // namespace
}  // namespace contrastive
