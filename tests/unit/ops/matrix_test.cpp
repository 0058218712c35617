#include "contrastive/ops/matrix.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/support/tensors.h"

namespace contrastive {
namespace {

using test::random_normal;
using test::tensors_near;

TEST(MatrixTest, ProductsOfALinearLayerEqualTorchInEveryPrecision) {
  const auto x = random_normal({9, 16}, 1, at::kDouble), weight = random_normal({5, 16}, 2, at::kDouble);
  const auto gradient = random_normal({9, 5}, 3, at::kDouble);
  for (const auto& [dtype, relative] :
       {std::pair{at::kDouble, 1e-14}, std::pair{at::kFloat, 1e-6}, std::pair{at::kBFloat16, 0.02}}) {
    const auto in = [&, to = dtype](const torch::Tensor& tensor) { return tensor.to(to); };
    const auto check = [&, most = relative](const char* name, const torch::Tensor& actual,
                                            const torch::Tensor& expected) {
      EXPECT_TRUE(tensors_near(name, actual.to(at::kDouble), expected, {0, most}));
      EXPECT_TRUE(actual.is_contiguous()) << name;
    };
    check("forward", ops::linear_forward(in(x), in(weight)), x.mm(weight.t()));
    if (ops::can_pack(dtype)) {
      check("forward, packed", ops::linear_forward(in(x), ops::pack_weight(in(weight))), x.mm(weight.t()));
    }
    check("input gradient", ops::linear_input_gradient(in(gradient), in(weight)), gradient.mm(weight));
    check("weight gradient", ops::linear_weight_gradient(in(gradient), in(x)), gradient.t().mm(x));
  }
}

}  // namespace
}  // namespace contrastive
