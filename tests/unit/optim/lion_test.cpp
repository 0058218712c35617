#include "contrastive/optim/lion.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/support/tensors.h"

namespace contrastive::optim {
namespace {

TEST(LionTest, StepsInDoublePrecisionAreThoseOfThePaper) {
  constexpr double kLr = 0.01, kDecay = 0.3, kBeta1 = 0.8, kBeta2 = 0.95;
  const NamedTensors parameters = {{"w", test::random_normal({6, 7}, 1, at::kDouble).requires_grad_()}};
  Lion optimizer(parameters, {.beta1 = kBeta1, .beta2 = kBeta2}, {{.decay = kDecay}});
  auto value = parameters[0].second.detach().clone();
  auto momentum = at::zeros_like(value);
  for (uint64_t step = 0; step < 5; ++step) {
    const auto gradient = test::random_normal({6, 7}, 10 + step, at::kDouble);
    auto leaf = parameters[0].second;
    leaf.mutable_grad() = gradient.clone();
    optimizer.step(kLr);
    const auto direction = (kBeta1 * momentum + (1 - kBeta1) * gradient).sign();
    value = value - kLr * (direction + kDecay * value);
    momentum = kBeta2 * momentum + (1 - kBeta2) * gradient;
    EXPECT_TRUE(test::tensors_near("w", parameters[0].second, value, {1e-14, 0}));
    EXPECT_TRUE(test::tensors_near("exp_avg.w", optimizer.state()[0].second, momentum, {1e-14, 0}));
  }
}

}  // namespace
}  // namespace contrastive::optim
