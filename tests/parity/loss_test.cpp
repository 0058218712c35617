#include <algorithm>
#include <map>
#include <string>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "contrastive/core/safetensors.h"
#include "contrastive/loss/contrastive_loss.h"

#include "tests/support/paths.h"
#include "tests/support/tensors.h"

namespace contrastive {
namespace {

struct LossAndGradients {
  torch::Tensor loss, image, text, log_scale;
};

LossAndGradients run(const std::map<std::string, torch::Tensor>& inputs, torch::ScalarType dtype) {
  const auto leaf = [&](const std::string& name) { return inputs.at(name).to(dtype).clone().requires_grad_(); };
  const auto image = leaf("image"), text = leaf("text"), log_scale = leaf("log_scale");
  const auto loss = loss::contrastive_loss(image, text, log_scale.exp()).loss;
  loss.backward();
  return {loss, image.grad(), text.grad(), log_scale.grad()};
}

class ContrastiveLossParityTest : public ::testing::Test {
 protected:
  /// Calls check(case name, its tensors) for every case of the fixture.
  template <typename Check>
  void for_each_case(const Check& check) {
    const auto fixtures = test::fixtures_dir();
    if (!fixtures) GTEST_SKIP() << "no parity fixtures (CONTRASTIVE_FIXTURES)";
    const SafetensorsFile file(*fixtures / "loss" / "clip_loss.safetensors");
    const auto cases = test::strings_at(test::meta_of(file), "cases");
    ASSERT_FALSE(cases.empty());
    for (const auto& name : cases) check(name, test::by_name(file.tensors(), name + "."));
  }
};

TEST_F(ContrastiveLossParityTest, LossAndGradientsEqualTheReferenceInDoublePrecision) {
  for_each_case([](const std::string& name, const std::map<std::string, torch::Tensor>& expected) {
    const auto actual = run(expected, at::kDouble);
    const test::Tolerance tolerance{1e-12, 1e-12};
    EXPECT_TRUE(test::tensors_near(name + ".loss", actual.loss, expected.at("loss"), tolerance));
    EXPECT_TRUE(test::tensors_near(name + ".grad_image", actual.image, expected.at("grad_image"), tolerance));
    EXPECT_TRUE(test::tensors_near(name + ".grad_text", actual.text, expected.at("grad_text"), tolerance));
    EXPECT_TRUE(
        test::tensors_near(name + ".grad_log_scale", actual.log_scale, expected.at("grad_log_scale"), tolerance));
  });
}

TEST_F(ContrastiveLossParityTest, LossAndGradientsEqualTheReferenceInSinglePrecision) {
  for_each_case([](const std::string& name, const std::map<std::string, torch::Tensor>& expected) {
    const auto actual = run(expected, at::kFloat);
    const double loss = expected.at("loss").item<double>();
    const double scale = std::max(1.0, expected.at("log_scale").exp().item<double>());
    const test::Tolerance features{1e-7 * scale, 1e-5};
    EXPECT_TRUE(test::tensors_near(name + ".loss", actual.loss, expected.at("loss"), {1e-6 * std::max(1.0, loss), 0}));
    EXPECT_TRUE(test::tensors_near(name + ".grad_image", actual.image, expected.at("grad_image"), features));
    EXPECT_TRUE(test::tensors_near(name + ".grad_text", actual.text, expected.at("grad_text"), features));
    EXPECT_TRUE(test::tensors_near(name + ".grad_log_scale", actual.log_scale, expected.at("grad_log_scale"),
                                   {1e-6 * scale, 1e-5}));
  });
}

}  // namespace
}  // namespace contrastive
