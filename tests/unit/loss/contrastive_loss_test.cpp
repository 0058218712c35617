#include "contrastive/loss/contrastive_loss.h"

#include <cmath>
#include <string>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include "contrastive/models/precision.h"

#include "tests/support/tensors.h"

namespace contrastive::loss {
namespace {

torch::Tensor unit_rows(int64_t rows, int64_t width, uint64_t seed, torch::ScalarType dtype = at::kFloat) {
  const auto x = test::random_normal({rows, width}, seed, dtype);
  return (x / x.norm(2, 1, true)).detach().requires_grad_();
}

torch::Tensor scale_of(double value, torch::ScalarType dtype = at::kFloat) {
  return at::full({}, value, dtype).requires_grad_();
}

/// Figure 3 of the paper.
torch::Tensor textbook_loss(const torch::Tensor& image, const torch::Tensor& text, const torch::Tensor& scale) {
  const auto logits = scale * image.mm(text.t());
  const auto labels = at::arange(image.size(0));
  return (at::cross_entropy_loss(logits, labels) + at::cross_entropy_loss(logits.t(), labels)) / 2;
}

void expect_textbook(int64_t rows, torch::ScalarType dtype, test::Tolerance tolerance) {
  const auto image = unit_rows(rows, 8, 1, dtype), text = unit_rows(rows, 8, 2, dtype);
  const auto scale = scale_of(14.0, dtype);
  const auto actual = contrastive_loss(image, text, scale).loss;
  const auto expected = textbook_loss(image, text, scale);
  EXPECT_TRUE(test::tensors_near("loss", actual, expected, tolerance));
  const auto actual_gradients = torch::autograd::grad({actual * 3}, {image, text, scale});
  const auto expected_gradients = torch::autograd::grad({expected * 3}, {image, text, scale});
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(
        test::tensors_near("gradient " + std::to_string(i), actual_gradients[i], expected_gradients[i], tolerance));
  }
}

TEST(ContrastiveLossTest, EqualsTheTextbookFormulaInOneTile) {
  expect_textbook(37, at::kDouble, {1e-12, 1e-12});
}

TEST(ContrastiveLossTest, EqualsTheTextbookFormulaOverSeveralTiles) {
  expect_textbook(2300, at::kFloat, {1e-6, 1e-4});
}

TEST(ContrastiveLossTest, SwappingImagesAndTextsChangesNothing) {
  const auto image = unit_rows(20, 8, 1, at::kDouble), text = unit_rows(20, 8, 2, at::kDouble);
  const auto scale = scale_of(30.0, at::kDouble);
  EXPECT_TRUE(test::tensors_near("loss", contrastive_loss(text, image, scale).loss,
                                 contrastive_loss(image, text, scale).loss, {1e-13, 0}));
}

TEST(ContrastiveLossTest, ShufflingPairsTogetherChangesNothing) {
  const auto image = unit_rows(20, 8, 1, at::kDouble), text = unit_rows(20, 8, 2, at::kDouble);
  const auto scale = scale_of(30.0, at::kDouble);
  const auto order = at::randperm(20);
  EXPECT_TRUE(test::tensors_near("loss", contrastive_loss(image.index({order}), text.index({order}), scale).loss,
                                 contrastive_loss(image, text, scale).loss, {1e-13, 0}));
}

TEST(ContrastiveLossTest, WithoutKnowledgeItIsTheLogarithmOfTheBatch) {
  const auto rows = at::ones({16, 4}) / 2;
  const auto output = contrastive_loss(rows, rows, scale_of(100.0));
  EXPECT_NEAR(output.loss.item<double>(), std::log(16.0), 1e-5);
  EXPECT_NEAR(output.accuracy.item<double>(), 1.0 / 16, 1e-7);
}

TEST(ContrastiveLossTest, AccuracyIsTheShareOfImagesThatFindTheirText) {
  const auto image = at::eye(4);
  const auto text = image.index({test::indices({0, 1, 3, 2})});
  EXPECT_EQ(contrastive_loss(image, text, scale_of(10.0)).accuracy.item<float>(), 0.5F);
}

TEST(ContrastiveLossTest, LogitsStayFp32UnderAutocast) {
  const auto image = unit_rows(64, 16, 3), text = unit_rows(64, 16, 4);
  const auto scale = scale_of(100.0);
  const auto expected = contrastive_loss(image, text, scale).loss;
  const models::AutocastGuard guard(at::kCPU, true);
  EXPECT_TRUE(test::tensors_equal("loss", contrastive_loss(image, text, scale).loss, expected));
}

TEST(ContrastiveLossTest, Bf16FeaturesGiveAnFp32LossAndBf16Gradients) {
  const auto image = unit_rows(8, 16, 3).detach().to(at::kBFloat16).requires_grad_();
  const auto text = unit_rows(8, 16, 4).detach().to(at::kBFloat16).requires_grad_();
  const auto loss = contrastive_loss(image, text, scale_of(10.0)).loss;
  EXPECT_EQ(loss.scalar_type(), at::kFloat);
  loss.backward();
  EXPECT_EQ(image.grad().scalar_type(), at::kBFloat16);
}

TEST(ContrastiveLossTest, ALockedTowerGetsNoGradient) {
  const auto image = unit_rows(8, 16, 3).detach(), text = unit_rows(8, 16, 4);
  contrastive_loss(image, text, at::full({}, 10.0)).loss.backward();
  EXPECT_FALSE(image.grad().defined());
  EXPECT_TRUE(text.grad().defined());
  const at::NoGradGuard no_grad;
  EXPECT_FALSE(contrastive_loss(image, text, at::full({}, 10.0)).loss.requires_grad());
}

TEST(ContrastiveLossTest, ShapesThatDontBelongTogetherAreRefused) {
  const auto rows = at::ones({4, 8});
  const auto scale = at::ones({});
  try {
    contrastive_loss(rows, at::ones({4, 9}), scale);
    FAIL() << "no error";
  } catch (const c10::Error& error) {
    EXPECT_NE(
        std::string(error.what_without_backtrace())
            .find("[contrastive_loss] text_features must be Float [4, 8] on cpu like image_features, but are Float "
                  "[4, 9] on cpu"),
        std::string::npos)
        << error.what_without_backtrace();
  }
  EXPECT_THROW(contrastive_loss(rows, rows, at::ones({1})), c10::Error);
  EXPECT_THROW(contrastive_loss(at::ones({0, 8}), at::ones({0, 8}), scale), c10::Error);
}

}  // namespace
}  // namespace contrastive::loss
