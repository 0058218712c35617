#include "contrastive/loss/contrastive_loss.h"

#include <cmath>
#include <string>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

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

TEST(ContrastiveLossTest, ConfidentPairsKeepTheDigitsOfTheirTinyLossAndGradients) {
  // Every row is its own text and at right angles to the others: with s the scale, loss = log(1 + (n - 1) exp(-s)).
  const int64_t rows = 40;
  for (const double value : {14.3, 30.0, 60.0}) {
    const auto image = at::eye(rows).requires_grad_(), text = at::eye(rows).requires_grad_();
    const auto scale = scale_of(value);
    const auto exact_scale = scale.item<double>();
    const double others = (rows - 1) * std::exp(-exact_scale), doubt = others / (1 + others);
    const auto loss = contrastive_loss(image, text, scale).loss;
    EXPECT_NEAR(loss.item<double>() / std::log1p(others), 1, 1e-5);
    loss.backward();
    EXPECT_NEAR(scale.grad().item<double>() / -doubt, 1, 1e-5);
    const auto own = -exact_scale * doubt / rows;
    EXPECT_TRUE(test::tensors_near("own", image.grad().diagonal().to(at::kDouble), at::full({rows}, own, at::kDouble),
                                   {0, 1e-5}));
    EXPECT_TRUE(test::tensors_near("other", text.grad()[0][1].to(at::kDouble),
                                   at::full({}, -own / (rows - 1), at::kDouble), {0, 1e-5}));
  }
}

TEST(ContrastiveLossTest, ResultsDontDependOnTheNumberOfThreads) {
  const auto results = [](int threads, double value) {
    at::set_num_threads(threads);
    const auto image = unit_rows(2300, 64, 1), text = unit_rows(2300, 64, 2);
    const auto scale = scale_of(value);
    const auto loss = contrastive_loss(image, text, scale).loss;
    auto tensors = torch::autograd::grad({loss}, {image, text, scale});
    tensors.push_back(loss.detach());
    return tensors;
  };
  const int threads = at::get_num_threads();
  for (const double value : {14.3, 100.0}) {
    const auto one = results(1, value), three = results(3, value);
    for (size_t i = 0; i < one.size(); ++i) {
      EXPECT_TRUE(test::tensors_equal("value " + std::to_string(i), three[i], one[i]));
    }
  }
  at::set_num_threads(threads);
}

TEST(ContrastiveLossTest, FeaturesThatAreNotFiniteGiveALossThatIsNone) {
  for (const double value : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    for (const bool in_image : {true, false}) {
      const auto image = unit_rows(50, 8, 1).detach(), text = unit_rows(50, 8, 2).detach();
      (in_image ? image : text)[7][3].fill_(value);
      EXPECT_TRUE(std::isnan(contrastive_loss(image, text, scale_of(10.0)).loss.item<double>()));
    }
  }
  const auto rows = unit_rows(50, 8, 1);
  EXPECT_TRUE(std::isnan(contrastive_loss(rows, rows, scale_of(HUGE_VAL)).loss.item<double>()));
}

TEST(ContrastiveLossTest, FeaturesOfAnyLengthEqualTheTextbookFormula) {
  // Far beyond unit length: logits of thousands.
  for (const double length : {0.0, 1e-3, 30.0}) {
    const auto image = (unit_rows(33, 8, 1, at::kDouble) * length).detach().requires_grad_();
    const auto text = (unit_rows(33, 8, 2, at::kDouble) * length).detach().requires_grad_();
    const auto scale = scale_of(20.0, at::kDouble);
    const auto actual = contrastive_loss(image, text, scale).loss, expected = textbook_loss(image, text, scale);
    EXPECT_TRUE(test::tensors_near("loss", actual, expected, {1e-13, 1e-12}));
    EXPECT_TRUE(test::tensors_near("gradient", torch::autograd::grad({actual}, {image})[0],
                                   torch::autograd::grad({expected}, {image})[0], {1e-13, 1e-12}));
  }
}

TEST(ContrastiveLossTest, OfEqualScoresTheFirstCounts) {
  // Images 1 and 2 have equal texts, 4 and 5 too: only the first of each finds its own.
  const auto image = at::eye(6).index({test::indices({0, 1, 1, 3, 4, 4})});
  EXPECT_NEAR(contrastive_loss(image, image, scale_of(10.0)).accuracy.item<double>(), 4.0 / 6, 1e-7);
  EXPECT_NEAR(contrastive_loss(image, image, scale_of(100.0)).accuracy.item<double>(), 4.0 / 6, 1e-7);
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

TEST(ContrastiveLossTest, AGraphThatIsKeptGivesTheSameGradientsAgain) {
  const auto image = unit_rows(8, 16, 3), text = unit_rows(8, 16, 4);
  const auto loss = contrastive_loss(image, text, scale_of(10.0)).loss;
  loss.backward({}, /*keep_graph=*/true);
  const auto once = image.grad().clone();
  loss.backward();
  EXPECT_TRUE(test::tensors_equal("gradient", image.grad(), once * 2));
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
