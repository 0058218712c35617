#include "contrastive/optim/gradients.h"

#include <limits>
#include <string>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

namespace contrastive::optim {
namespace {

torch::Tensor with_gradient(const torch::Tensor& gradient) {
  auto parameter = at::zeros_like(gradient).requires_grad_();
  parameter.mutable_grad() = gradient;
  return parameter;
}

TEST(GradientsTest, TheGlobalNormRunsOverAllTensorsAndSkipsMissingGradients) {
  const NamedTensors parameters = {{"a", with_gradient(at::full({2}, 3.0))},
                                   {"none", at::zeros({5}).requires_grad_()},
                                   {"b", with_gradient(at::full({1, 2}, 4.0))}};
  EXPECT_NEAR(global_norm(parameters).item<double>(), std::sqrt(50.0), 1e-6);
  EXPECT_EQ(global_norm({{"none", at::zeros({5}).requires_grad_()}}).item<double>(), 0.0);
  EXPECT_EQ(global_norm({}).item<double>(), 0.0);
}

TEST(GradientsTest, TheDivisorIsOneBelowTheLimit) {
  EXPECT_EQ(clip_divisor(at::full({}, 0.5), 1.0).item<double>(), 1.0);
  EXPECT_NEAR(clip_divisor(at::full({}, 5.0), 2.0).item<double>(), 2.5, 1e-5);
  EXPECT_THROW(clip_divisor(at::full({}, 5.0), 0.0), c10::Error);
}

TEST(GradientsTest, TheFirstGradientThatIsNotFiniteIsNamedWithCounts) {
  const auto nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  const NamedTensors parameters = {{"good", with_gradient(at::ones({3}))},
                                   {"visual.proj", with_gradient(at::tensor({1.0F, nan, -infinity, nan}))}};
  EXPECT_EQ(first_non_finite(parameters), "the gradient of visual.proj has 2 NaN and 1 infinite of 4 values");
  EXPECT_EQ(first_non_finite({parameters[0]}), "");
}

}  // namespace
}  // namespace contrastive::optim
