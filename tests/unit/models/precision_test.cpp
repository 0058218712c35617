#include "contrastive/models/precision.h"

#include <stdexcept>

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>

namespace contrastive::models {
namespace {

bool enabled() {
  return at::autocast::is_autocast_enabled(at::kCPU);
}

torch::ScalarType product_dtype() {
  return at::ones({2, 2}).mm(at::ones({2, 2})).scalar_type();
}

TEST(AutocastGuardTest, SwitchesMatrixProductsToBf16AndBack) {
  {
    const AutocastGuard guard(at::kCPU, true);
    EXPECT_EQ(product_dtype(), at::kBFloat16);
    EXPECT_EQ(compute_dtype(at::ones({1})), at::kBFloat16);
  }
  EXPECT_EQ(product_dtype(), at::kFloat);
  EXPECT_EQ(compute_dtype(at::ones({1})), at::kFloat);
}

TEST(AutocastGuardTest, GuardsNestAndAnInnerOneCanSwitchItOff) {
  const AutocastGuard outer(at::kCPU, true);
  {
    const AutocastGuard inner(at::kCPU, false);
    EXPECT_EQ(product_dtype(), at::kFloat);
  }
  EXPECT_EQ(product_dtype(), at::kBFloat16);
}

TEST(AutocastGuardTest, RestoresDtypeAndStateAfterAnException) {
  const auto dtype = at::autocast::get_autocast_dtype(at::kCPU);
  at::autocast::set_autocast_dtype(at::kCPU, at::kHalf);
  EXPECT_THROW(
      {
        const AutocastGuard guard(at::kCPU, true);
        throw std::runtime_error("stop");
      },
      std::runtime_error);
  EXPECT_FALSE(enabled());
  EXPECT_EQ(at::autocast::get_autocast_dtype(at::kCPU), at::kHalf);
  at::autocast::set_autocast_dtype(at::kCPU, dtype);
}

TEST(AutocastGuardTest, TheOutermostExitDropsCachedWeights) {
  auto weight = at::ones({2, 2}).requires_grad_();
  const auto product = [&] {
    const AutocastGuard guard(at::kCPU, true);
    return at::ones({2, 2}).mm(weight).sum().item<float>();
  };
  EXPECT_EQ(product(), 8.0F);
  {
    const at::NoGradGuard no_grad;
    weight.mul_(2);
  }
  EXPECT_EQ(product(), 16.0F);
}

}  // namespace
}  // namespace contrastive::models
