#include "contrastive/loss/sigmoid_loss.h"

#include <cmath>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "contrastive/models/clip_model.h"
#include "contrastive/models/precision.h"

#include "tests/support/tensors.h"

namespace contrastive::loss {
namespace {

torch::Tensor unit_rows(int64_t rows, int64_t width, uint64_t seed, torch::ScalarType dtype = at::kFloat) {
  return models::l2_normalize(test::random_normal({rows, width}, seed, dtype)).detach().requires_grad_();
}

torch::Tensor scalar(double value, torch::ScalarType dtype = at::kFloat) {
  return at::full({}, value, at::TensorOptions(dtype)).requires_grad_();
}

/// The formula of the paper with the whole matrix.
torch::Tensor textbook_loss(const torch::Tensor& image, const torch::Tensor& text, const torch::Tensor& scale,
                            const torch::Tensor& bias) {
  const auto logits = scale * image.mm(text.t()) + bias;
  const auto signs = 2 * at::eye(image.size(0), logits.options()) - 1;
  return -at::log_sigmoid(signs * logits).sum() / image.size(0);
}

TEST(SigmoidLossTest, GradientsOfAllInputsEqualTheTextbookFormulaOverSeveralTiles) {
  // 2,100 x 2,100 logits are more than one tile.
  const auto image = unit_rows(2100, 8, 1, at::kDouble), text = unit_rows(2100, 8, 2, at::kDouble);
  const auto scale = scalar(10.0, at::kDouble), bias = scalar(-10.0, at::kDouble);
  const auto expected_loss = textbook_loss(image, text, scale, bias);
  const auto expected = torch::autograd::grad({expected_loss}, {image, text, scale, bias});
  const auto loss = sigmoid_loss(image, text, scale, bias).loss;
  const auto actual = torch::autograd::grad({loss}, {image, text, scale, bias});
  EXPECT_TRUE(test::tensors_near("loss", loss, expected_loss, {0, 1e-12}));
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_TRUE(test::tensors_near("input " + std::to_string(i), actual[i], expected[i], {1e-14, 1e-11}));
  }
}

TEST(SigmoidLossTest, SinglePrecisionEqualsTheTextbookFormulaInDoublePrecision) {
  for (const double value : {1.0, 14.3, 100.0}) {
    const auto image = unit_rows(150, 24, 1), text = unit_rows(150, 24, 2);
    const auto scale = scalar(value), bias = scalar(-value / 2);
    const auto exact = [](const torch::Tensor& x) { return x.detach().to(at::kDouble).requires_grad_(); };
    const std::vector<torch::Tensor> inputs{image, text, scale, bias};
    const std::vector<torch::Tensor> exact_inputs{exact(image), exact(text), exact(scale), exact(bias)};
    const auto expected_loss = textbook_loss(exact_inputs[0], exact_inputs[1], exact_inputs[2], exact_inputs[3]);
    const auto expected = torch::autograd::grad({expected_loss}, exact_inputs);
    const auto loss = sigmoid_loss(image, text, scale, bias).loss;
    const auto actual = torch::autograd::grad({loss}, inputs);
    EXPECT_NEAR(loss.item<double>() / expected_loss.item<double>(), 1, 2e-6);
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_TRUE(test::tensors_near("input " + std::to_string(i), actual[i].to(at::kDouble), expected[i], {0, 1e-5}));
    }
  }
}

TEST(SigmoidLossTest, FeaturesThatAreNotFiniteGiveALossThatIsNotFinite) {
  for (const double value : {std::nan(""), HUGE_VAL}) {
    const auto image = unit_rows(50, 8, 1).detach(), text = unit_rows(50, 8, 2).detach();
    image[7][3].fill_(value);
    EXPECT_FALSE(std::isfinite(sigmoid_loss(image, text, scalar(10.0), scalar(-10.0)).loss.item<double>()));
  }
}

TEST(SigmoidLossTest, AccuracyIsTheShareOfImagesThatFindTheirText) {
  const auto image = at::eye(40);
  auto order = at::arange(40);
  order.narrow(0, 0, 10).copy_(at::arange(10).flip(0));
  const auto accuracy = sigmoid_loss(image, image.index({order}), scalar(10.0), scalar(-10.0)).accuracy;
  EXPECT_EQ(accuracy.item<float>(), 0.75F);
}

TEST(SigmoidLossTest, WithoutKnowledgeEveryPairCostsTheLogarithmOfTwo) {
  const auto rows = at::ones({16, 4}) / 2;
  const auto loss = sigmoid_loss(rows, rows, scalar(0.0), scalar(0.0)).loss;
  EXPECT_NEAR(loss.item<double>(), 16 * std::log(2.0), 1e-4);
}

TEST(SigmoidLossTest, ShufflingPairsTogetherChangesNothing) {
  const auto image = unit_rows(20, 8, 1, at::kDouble), text = unit_rows(20, 8, 2, at::kDouble);
  const auto scale = scalar(30.0, at::kDouble), bias = scalar(-3.0, at::kDouble);
  const auto order = at::randperm(20);
  EXPECT_TRUE(test::tensors_near("loss", sigmoid_loss(image.index({order}), text.index({order}), scale, bias).loss,
                                 sigmoid_loss(image, text, scale, bias).loss, {1e-13, 0}));
}

TEST(SigmoidLossTest, LogitsStayFp32UnderAutocast) {
  const auto image = unit_rows(64, 16, 3), text = unit_rows(64, 16, 4);
  const auto scale = scalar(100.0), bias = scalar(-10.0);
  const auto expected = sigmoid_loss(image, text, scale, bias).loss;
  const models::AutocastGuard guard(at::kCPU, true);
  EXPECT_TRUE(test::tensors_equal("loss", sigmoid_loss(image, text, scale, bias).loss, expected));
}

TEST(SigmoidLossTest, AModelWithoutABiasIsRefused) {
  const auto rows = unit_rows(4, 8, 1);
  try {
    sigmoid_loss(rows, rows, scalar(10.0), torch::Tensor());
    FAIL() << "no error";
  } catch (const c10::Error& error) {
    EXPECT_STREQ(error.what_without_backtrace(), "[sigmoid_loss] logit_bias is undefined");
  }
}

}  // namespace
}  // namespace contrastive::loss
