#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "contrastive/core/safetensors.h"
#include "contrastive/loss/contrastive_loss.h"
#include "contrastive/loss/sigmoid_loss.h"

#include "tests/support/paths.h"
#include "tests/support/tensors.h"

namespace contrastive {
namespace {

/// One of the two losses, by the name of its fixture.
struct LossCase {
  std::string file;
  bool has_bias;
};

using Tensors = std::map<std::string, torch::Tensor>;

/// The loss and the gradients of all its inputs, under the fixture's names.
Tensors run(const Tensors& inputs, bool has_bias, torch::ScalarType dtype) {
  Tensors leaves;
  for (const char* name : {"image", "text", "log_scale", "bias"}) {
    if (inputs.contains(name)) leaves[name] = inputs.at(name).to(dtype).clone().requires_grad_();
  }
  const auto& image = leaves.at("image");
  const auto scale = leaves.at("log_scale").exp();
  const auto loss = has_bias ? loss::sigmoid_loss(image, leaves.at("text"), scale, leaves.at("bias")).loss
                             : loss::contrastive_loss(image, leaves.at("text"), scale).loss;
  loss.backward();
  Tensors results{{"loss", loss}};
  for (const auto& [name, leaf] : leaves) results["grad_" + name] = leaf.grad();
  return results;
}

class LossParityTest : public ::testing::TestWithParam<LossCase> {
 protected:
  /// Calls check(case name, its tensors) for every case of the fixture.
  template <typename Check>
  void for_each_case(const Check& check) {
    const auto fixtures = test::fixtures_dir();
    if (!fixtures) GTEST_SKIP() << "no parity fixtures (CONTRASTIVE_FIXTURES)";
    const SafetensorsFile file(*fixtures / "loss" / GetParam().file);
    const auto cases = test::strings_at(test::meta_of(file), "cases");
    ASSERT_FALSE(cases.empty());
    for (const auto& name : cases) check(name, test::by_name(file.tensors(), name + "."));
  }
};

TEST_P(LossParityTest, LossAndGradientsEqualTheReferenceInDoublePrecision) {
  for_each_case([](const std::string& name, const Tensors& expected) {
    for (const auto& [what, actual] : run(expected, GetParam().has_bias, at::kDouble)) {
      EXPECT_TRUE(test::tensors_near(name + "." + what, actual, expected.at(what), {1e-12, 1e-12}));
    }
  });
}

TEST_P(LossParityTest, LossAndGradientsEqualTheReferenceInSinglePrecision) {
  for_each_case([](const std::string& name, const Tensors& expected) {
    const double loss = expected.at("loss").item<double>();
    const double scale = std::max(1.0, expected.at("log_scale").exp().item<double>());
    for (const auto& [what, actual] : run(expected, GetParam().has_bias, at::kFloat)) {
      const bool is_scalar = what == "grad_log_scale" || what == "grad_bias";
      const auto tolerance = what == "loss" ? test::Tolerance{1e-6 * std::max(1.0, loss), 0}
                                            : test::Tolerance{(is_scalar ? 1e-6 : 1e-7) * scale, 1e-5};
      EXPECT_TRUE(test::tensors_near(name + "." + what, actual, expected.at(what), tolerance));
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Fixtures, LossParityTest,
                         ::testing::Values(LossCase{"clip_loss.safetensors", false},
                                           LossCase{"siglip_loss.safetensors", true}),
                         [](const auto& item) { return item.param.has_bias ? "sigmoid" : "softmax"; });

}  // namespace
}  // namespace contrastive
