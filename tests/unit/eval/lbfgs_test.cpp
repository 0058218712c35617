#include "eval/lbfgs.h"

#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"

#include "tests/support/errors.h"
#include "tests/support/tensors.h"

namespace contrastive::eval::detail {
namespace {

/// Rosenbrock's valley in n dimensions; the minimum is 0, at ones.
double rosenbrock(const torch::Tensor& point, torch::Tensor& gradient) {
  const auto n = point.size(0);
  const auto head = point.slice(0, 0, n - 1), tail = point.slice(0, 1);
  const auto bend = tail - head.square();
  gradient.zero_();
  gradient.slice(0, 0, n - 1).sub_(400 * bend * head + 2 * (1 - head));
  gradient.slice(0, 1).add_(200 * bend);
  return (100 * bend.square() + (1 - head).square()).sum().item<double>();
}

bool is_flat(double, const torch::Tensor& gradient, double) {
  return gradient.abs().max().item<double>() <= 1e-9;
}

TEST(LbfgsTest, FindsTheEndOfRosenbrocksValley) {
  for (const int64_t n : {2, 10, 50}) {
    SCOPED_TRACE(n);
    auto start = at::full({n}, -1.2, at::kDouble);
    start.slice(0, 1, n, 2).fill_(1.0);
    const auto found = minimise({.value = rosenbrock, .is_done = is_flat}, start, {});
    EXPECT_TRUE(found.converged);
    EXPECT_LT(found.iterations, 500);
    EXPECT_LE(found.evaluations, 2 * found.iterations);
    if (n > 2) continue;  // there are other valleys
    EXPECT_TRUE(test::tensors_near("point", found.point, at::ones({n}, at::kDouble), {1e-7, 0}));
  }
}

TEST(LbfgsTest, APreconditionerMakesAnEllipsoidASphere) {
  const auto curvature = at::logspace(-4, 4, 100, 10.0, at::kDouble);
  const auto value = [&](const torch::Tensor& point, torch::Tensor& gradient) {
    gradient.copy_(curvature * (point - 3));
    return 0.5 * (curvature * (point - 3).square()).sum().item<double>();
  };
  const auto start = at::zeros({100}, at::kDouble);
  const auto plain = minimise({.value = value, .is_done = is_flat}, start, {});
  const auto helped = minimise(
      {.value = value, .precondition = [&](const torch::Tensor& v) { return v / curvature; }, .is_done = is_flat},
      start, {});
  EXPECT_TRUE(helped.converged);
  EXPECT_LE(helped.iterations, 2);
  EXPECT_GT(plain.iterations, 20);
  EXPECT_TRUE(test::tensors_near("point", helped.point, at::full({100}, 3.0, at::kDouble), {1e-9, 0}));
}

TEST(LbfgsTest, WalksBackFromWhereTheFunctionIsNotDefined) {
  const auto value = [](const torch::Tensor& point, torch::Tensor& gradient) {  // x - log x
    gradient.copy_(1 - point.reciprocal());
    return (point - point.log()).sum().item<double>();
  };
  const auto found =
      minimise({.value = value, .precondition = [](const torch::Tensor& v) { return v * 1000; }, .is_done = is_flat},
               at::tensor({5.0, 0.01}, at::kDouble), {});
  EXPECT_TRUE(found.converged);
  EXPECT_TRUE(test::tensors_near("point", found.point, at::ones({2}, at::kDouble), {1e-8, 0}));
}

TEST(LbfgsTest, EndsWithoutConvergenceAtTheLimitAndAtTheEndOfPrecision) {
  const auto start = at::tensor({-1.2, 1.0}, at::kDouble);
  const auto cut = minimise({.value = rosenbrock, .is_done = is_flat}, start, {.max_iterations = 3});
  EXPECT_FALSE(cut.converged);
  EXPECT_EQ(cut.iterations, 3);

  const auto never = [](double, const torch::Tensor&, double) { return false; };
  const auto exhausted = minimise({.value = rosenbrock, .is_done = never}, start, {});
  EXPECT_FALSE(exhausted.converged);
  EXPECT_LT(exhausted.iterations, 100);
  EXPECT_LT(exhausted.value, 1e-20);
}

TEST(LbfgsTest, RefusesAStartWithoutAValue) {
  const auto nowhere = [](const torch::Tensor&, torch::Tensor&) { return std::numeric_limits<double>::infinity(); };
  EXPECT_EQ(
      test::message_of([&] { minimise({.value = nowhere, .is_done = is_flat}, at::zeros({2}, at::kDouble), {}); }),
      "[lbfgs] the value at the start is inf");
}

}  // namespace
}  // namespace contrastive::eval::detail
