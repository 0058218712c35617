#include "contrastive/ops/adamw.h"

#include <cmath>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/support/errors.h"
#include "tests/support/tensors.h"

namespace contrastive {
namespace {

using test::random_normal;
using test::tensors_equal;
using test::tensors_near;

/// Algorithm 2 of Loshchilov & Hutter 2019 in fp64.
struct Reference {
  explicit Reference(const torch::Tensor& start)
      : value(start.to(at::kDouble)), m(at::zeros_like(value)), v(at::zeros_like(value)) {}

  void step(const torch::Tensor& gradient, const ops::AdamWStep& s) {
    const auto g = gradient.to(at::kDouble) / s.grad_divisor;
    m = s.beta1 * m + (1 - s.beta1) * g;
    v = s.beta2 * v + (1 - s.beta2) * g * g;
    const auto unbiased_m = m / (1 - std::pow(s.beta1, s.step)), unbiased_v = v / (1 - std::pow(s.beta2, s.step));
    value = value - s.lr * s.decay * value - s.lr * unbiased_m / (unbiased_v.sqrt() + s.eps);
  }

  torch::Tensor value, m, v;
};

TEST(AdamWOpTest, StepsEqualTheAlgorithmAndTheCopyIsTheRoundedValue) {
  const auto parameter = random_normal({13, 129}, 1), m = at::zeros_like(parameter), v = at::zeros_like(parameter);
  const auto copy = at::empty_like(parameter, at::kBFloat16);
  Reference reference(parameter);
  for (int64_t step = 1; step <= 5; ++step) {
    const auto gradient = random_normal({13, 129}, 10 + static_cast<uint64_t>(step)), before = gradient.clone();
    const ops::AdamWStep numbers{.lr = 1e-2,
                                 .beta1 = 0.9,
                                 .beta2 = 0.98,
                                 .eps = 1e-6,
                                 .decay = 0.2,
                                 .step = static_cast<double>(step),
                                 .grad_divisor = 1.5};
    ops::adamw_step(parameter, gradient, m, v, copy, numbers);
    reference.step(before, numbers);
    EXPECT_TRUE(tensors_equal("gradient", gradient, before));
  }
  EXPECT_TRUE(tensors_near("value", parameter.to(at::kDouble), reference.value, {0, 5e-7}));
  EXPECT_TRUE(tensors_near("m", m.to(at::kDouble), reference.m, {0, 1e-6}));
  EXPECT_TRUE(tensors_near("v", v.to(at::kDouble), reference.v, {0, 1e-6}));
  EXPECT_TRUE(tensors_equal("copy", copy, parameter.to(at::kBFloat16)));
}

TEST(AdamWOpTest, CountsAsAChangeOfTheParameter) {
  const auto x = at::ones({4});
  const auto before = x._version();
  ops::adamw_step(x, at::ones({4}), at::zeros({4}), at::zeros({4}), {}, {.lr = 0.1});
  EXPECT_GT(x._version(), before);
}

TEST(AdamWOpTest, RefusesTensorsOfOtherShapesAndTypes) {
  const auto x = at::zeros({2, 3});
  const auto text = test::message_of<c10::Error>([&] { ops::adamw_step(x, at::zeros({3, 2}), x, x, {}, {}); });
  EXPECT_EQ(text.find("[adamw_step] gradient must be a dense [2, 3] of Float in CPU memory, in the parameter's order"),
            0U)
      << text;
  EXPECT_THROW(ops::adamw_step(x, x, x, x, x, {}), c10::Error);
}

}  // namespace
}  // namespace contrastive
