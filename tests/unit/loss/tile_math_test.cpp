#include "loss/tile_math.h"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

namespace contrastive::loss::detail {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(TileMathTest, MergedSumsAreRelativeToTheLargerReference) {
  // exp(3) + exp(4), and exp(90) + exp(100).
  const auto total = merged(ExpSum<double>{4, std::exp(-1) + 1}, ExpSum<double>{100, std::exp(-10) + 1});
  EXPECT_EQ(total.reference, 100);
  EXPECT_NEAR(total.sum, std::exp(-97) + std::exp(-96) + std::exp(-10) + 1, 1e-15);
}

TEST(TileMathTest, MergingWithNothingChangesNothing) {
  for (const float reference : {-300.0F, 0.0F, 300.0F}) {
    const auto total = merged(ExpSum<float>{}, ExpSum<float>{reference, 1.5F});
    EXPECT_EQ(total.reference, reference);
    EXPECT_EQ(total.sum, 1.5F);
  }
  EXPECT_EQ(merged(ExpSum<float>{}, ExpSum<float>{}).sum, 0.0F);
}

TEST(TileMathTest, ARowsSumIsRelativeToItsMaximumOrToTheShift) {
  const RowSum<double> left{5, 2, 1.25}, right{1, 7, 1.5};
  const auto relative = merged(left, right, kInfinity);
  EXPECT_EQ(relative.before, 5);
  EXPECT_EQ(relative.after, 7);
  EXPECT_NEAR(relative.sum, 1.25 * std::exp(-2) + 1.5, 1e-15);
  EXPECT_EQ(merged(left, right, 20.0).sum, 2.75);
}

TEST(TileMathTest, SumsOfNumbersThatAreNoneStayNone) {
  const double nan = std::nan("");
  EXPECT_TRUE(std::isnan(merged(ExpSum<double>{1, nan}, ExpSum<double>{2, 1}).sum));
  EXPECT_TRUE(std::isnan(merged(RowSum<double>{1, 1, nan}, RowSum<double>{2, 2, 1}, 4.0).sum));
}

TEST(TileMathTest, SoftplusAndSigmoidKeepTheirDigitsAtBothEnds) {
  EXPECT_NEAR(softplus(0.0), std::log(2.0), 1e-16);
  EXPECT_EQ(softplus(800.0), 800.0);
  EXPECT_NEAR(softplus(-40.0) / std::exp(-40.0), 1, 1e-15);
  EXPECT_EQ(sigmoid(0.0), 0.5);
  EXPECT_NEAR(sigmoid(-40.0) / std::exp(-40.0), 1, 1e-15);
  EXPECT_EQ(sigmoid(-800.0), 0.0);
  EXPECT_EQ(sigmoid(800.0), 1.0);
  EXPECT_NEAR(sigmoid(-3.0) + sigmoid(3.0), 1, 1e-15);
}

}  // namespace
}  // namespace contrastive::loss::detail
