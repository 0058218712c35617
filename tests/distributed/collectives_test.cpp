#include "contrastive/distributed/collectives.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "tests/support/ranks.h"
#include "tests/support/tensors.h"

namespace contrastive::distributed {
namespace {

constexpr test::Tolerance kDouble{0, 1e-12};
constexpr int64_t kRows = 3;

/// What a rank alone adds to the loss: another function of the result on each. Shapes: any to [].
torch::Tensor share_of_loss(const torch::Tensor& result, int64_t rank) {
  const auto weights = test::random_normal(result.sizes(), 100 + static_cast<uint64_t>(rank), at::kDouble);
  return (result * weights).sin().sum() * static_cast<double>(rank + 1);
}

/// The input of each rank, as leaves.
std::vector<torch::Tensor> inputs_of(int64_t ranks) {
  std::vector<torch::Tensor> inputs;
  for (int64_t r = 0; r < ranks; ++r) {
    inputs.push_back(test::random_normal({kRows, 4}, static_cast<uint64_t>(r), at::kDouble).requires_grad_());
  }
  return inputs;
}

/// Compares a rank's result and gradient with those of one process that does all ranks' work.
template <typename Operation>
void check(const ProcessGroup& group, const Operation& operation, const torch::Tensor& expected,
           const std::vector<torch::Tensor>& all) {
  auto whole = at::zeros({}, at::kDouble);
  for (int64_t r = 0; r < group.size(); ++r) whole = whole + share_of_loss(expected, r);
  const auto rank = static_cast<size_t>(group.rank());
  const auto x = all[rank].detach().clone().requires_grad_();
  // Neither the input nor its gradient is contiguous.
  const auto result = operation(x.t().contiguous().t(), group);
  EXPECT_TRUE(test::tensors_near("result", result, expected, kDouble));
  share_of_loss(result.t().contiguous().t(), group.rank()).backward();
  EXPECT_TRUE(test::tensors_near("gradient", x.grad(), torch::autograd::grad({whole}, {all[rank]})[0], kDouble));
}

TEST(CollectivesTest, GradientsAreThoseOfTheSumOfTheRanksLosses) {
  for (const int ranks : {1, 2, 3, 4}) {
    test::run_on_ranks(ranks, [&](const ProcessGroup& group) {
      const auto all = inputs_of(ranks);
      auto sum = all[0];
      for (size_t r = 1; r < all.size(); ++r) sum = sum + all[r];
      check(group, all_reduce_sum, sum, all);
      check(group, all_gather_rows, at::cat(all), all);
    });
  }
}

TEST(CollectivesTest, OneProcessGetsItsOwnTensorBack) {
  const auto x = at::ones({2, 3}).requires_grad_();
  EXPECT_TRUE(all_reduce_sum(x, ProcessGroup()).is_same(x));
  EXPECT_TRUE(all_gather_rows(x, ProcessGroup()).is_same(x));
}

TEST(CollectivesTest, TheInputStaysAsItWas) {
  test::run_on_ranks(2, [](const ProcessGroup& group) {
    const auto x = at::ones({2, 3});
    EXPECT_TRUE(all_reduce_sum(x, group).eq(2).all().item<bool>());
    EXPECT_TRUE(x.eq(1).all().item<bool>());
  });
}

}  // namespace
}  // namespace contrastive::distributed
