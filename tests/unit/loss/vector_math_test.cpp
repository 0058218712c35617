#include "loss/vector_math.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

namespace contrastive::loss::detail {
namespace {

constexpr int64_t kCount = Lanes<float>::kCount;

/// What a function makes of some numbers, a vector at a time.
template <typename Function>
std::vector<float> applied(std::vector<float> values, const Function& function) {
  const auto size = static_cast<int64_t>(values.size());
  for (int64_t i = 0; i < size; i += kCount) {
    Lanes<float>::Vector x;
    load(x, values.data() + i, size - i);
    function(x);
    store(values.data() + i, x, size - i);
  }
  return values;
}

std::vector<float> exps(const std::vector<float>& values) {
  return applied(values, [](auto& x) { exp_in_place(x); });
}

std::vector<float> steps(float begin, float end, int64_t count) {
  std::vector<float> result;
  for (int64_t i = 0; i < count; ++i) {
    result.push_back(begin + (end - begin) * static_cast<float>(i) / static_cast<float>(count));
  }
  return result;
}

/// Largest relative error against a function in double precision.
template <typename Function>
double largest_error(const std::vector<float>& x, const std::vector<float>& y, const Function& exact) {
  double largest = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double expected = exact(static_cast<double>(x[i]));
    largest = std::max(largest, std::abs(static_cast<double>(y[i]) - expected) / expected);
  }
  return largest;
}

TEST(VectorMathTest, ExpIsExactToTwoUnitsInTheLastPlace) {
  const auto x = steps(-87, 88, 100'003);
  EXPECT_LT(largest_error(x, exps(x), [](double v) { return std::exp(v); }), 2.4e-7);
  EXPECT_EQ(exps({0.0F})[0], 1.0F);
}

TEST(VectorMathTest, ExpOfVerySmallNumbersIsZeroAndOfNoneIsNone) {
  const float infinity = std::numeric_limits<float>::infinity();
  const auto y = exps({-88.0F, -1e10F, kLowest<float>, -infinity, std::nanf(""), -std::nanf("7")});
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(y[i], 0.0F) << i;
  EXPECT_TRUE(std::isnan(y[4]));
  EXPECT_TRUE(std::isnan(y[5]));
}

TEST(VectorMathTest, Log1pKeepsTheDigitsOfTinyNumbers) {
  const auto log1p_of = [](const std::vector<float>& x) { return applied(x, [](auto& v) { log1p_in_place(v); }); };
  auto x = steps(1e-3F, 1, 10'001);
  for (const float tiny : {1e-6F, 1e-20F, 1e-37F}) x.push_back(tiny);
  EXPECT_LT(largest_error(x, log1p_of(x), [](double v) { return std::log1p(v); }), 2.4e-7);
  EXPECT_EQ(log1p_of({0.0F})[0], 0.0F);
}

TEST(VectorMathTest, PartsOfAVectorAreReadAndWrittenAlone) {
  const std::vector<double> values{1, 2, 3};
  Lanes<double>::Vector x;
  load(x, values.data(), 3);
  EXPECT_EQ(sum_of<double>(x), 6);
  fill_from(x, 3, -5.0);
  EXPECT_EQ(sum_of<double>(x), 6 - 5.0 * (Lanes<double>::kCount - 3));
  EXPECT_EQ(largest_of<double>(x), 3);
  std::vector<double> target(4, 9);
  store(target.data(), x, 2);
  EXPECT_EQ(target, (std::vector<double>{1, 2, 9, 9}));
}

}  // namespace
}  // namespace contrastive::loss::detail
