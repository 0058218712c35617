#include "contrastive/distributed/process_group.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/support/ranks.h"

namespace contrastive::distributed {
namespace {

using test::run_on_ranks;

/// Values that tell rank and place apart.
torch::Tensor values_of(int64_t rank, at::IntArrayRef sizes, torch::ScalarType dtype) {
  return (at::arange(c10::multiply_integers(sizes), at::kDouble) + 100 * (rank + 1)).view(sizes).to(dtype);
}

void check_operations(const ProcessGroup& group, torch::ScalarType dtype) {
  const auto size = group.size(), rank = group.rank();
  torch::Tensor sum = at::zeros({5}, at::kDouble);
  std::vector<torch::Tensor> all;
  for (int64_t r = 0; r < size; ++r) {
    sum += values_of(r, {5}, at::kDouble);
    all.push_back(values_of(r, {2, 3}, dtype));
  }
  auto reduced = values_of(rank, {5}, dtype);
  group.all_reduce(reduced);
  EXPECT_TRUE(reduced.equal(sum.to(dtype))) << dtype;
  auto largest = values_of(rank, {5}, dtype);
  group.all_reduce(largest, ReduceOp::max);
  EXPECT_TRUE(largest.equal(values_of(size - 1, {5}, dtype))) << dtype;
  EXPECT_TRUE(group.all_gather(values_of(rank, {2, 3}, dtype)).equal(at::cat(all))) << dtype;
  const auto scattered = group.reduce_scatter(values_of(rank, {size * 2, 2}, dtype));
  auto expected = at::zeros({size * 2, 2}, at::kDouble);
  for (int64_t r = 0; r < size; ++r) expected += values_of(r, {size * 2, 2}, at::kDouble);
  EXPECT_TRUE(scattered.equal(expected.narrow(0, rank * 2, 2).to(dtype))) << dtype;
}

TEST(ProcessGroupTest, ReducesGathersAndScattersOnOneToFourRanks) {
  for (const int ranks : {1, 2, 3, 4}) {
    run_on_ranks(ranks, [&](const ProcessGroup& group) {
      ASSERT_EQ(group.size(), ranks);
      for (const auto dtype : {at::kFloat, at::kDouble, at::kLong}) check_operations(group, dtype);
    });
  }
}

TEST(ProcessGroupTest, ExchangesTextsBroadcastsAndKeepsValuesForOthers) {
  run_on_ranks(3, [](const ProcessGroup& group) {
    const auto mine = std::string(static_cast<size_t>(group.rank()) * 3, 'x') + std::to_string(group.rank());
    EXPECT_EQ(group.all_gather_text(mine), (std::vector<std::string>{"0", "xxx1", "xxxxxx2"}));
    EXPECT_EQ(group.broadcast_text(mine, 1), "xxx1");
    EXPECT_EQ(group.broadcast_text("", 0), "");
    auto tensor = values_of(group.rank(), {4}, at::kBFloat16);
    group.broadcast(tensor, 2);
    EXPECT_TRUE(tensor.equal(values_of(2, {4}, at::kBFloat16)));
    if (group.rank() == 2) group.set_value("place", "here");
    EXPECT_EQ(group.get_value("place"), "here");
    group.barrier();
  });
}

TEST(ProcessGroupTest, SendsParts) {
  run_on_ranks(3, [](const ProcessGroup& group) {
    const auto mine = at::arange(6, at::kLong).view({3, 2}) + 10 * group.rank();
    auto received = at::empty_like(mine);
    group.start_all_to_all(received, mine).wait();
    std::vector<torch::Tensor> expected;
    for (int64_t r = 0; r < 3; ++r) expected.push_back((at::arange(6).view({3, 2}) + 10 * r)[group.rank()]);
    EXPECT_TRUE(received.equal(at::stack(expected)));
  });
}

TEST(ProcessGroupTest, OperationsThatWereStartedTogetherDoNotMix) {
  run_on_ranks(2, [](const ProcessGroup& group) {
    std::vector<torch::Tensor> tensors;
    std::vector<Pending> pending;
    for (int64_t i = 0; i < 20; ++i) tensors.push_back(at::full({1000}, static_cast<double>(i + group.rank())));
    for (const auto& tensor : tensors) pending.push_back(group.start_all_reduce(tensor));
    for (auto& work : pending) work.wait();
    for (int64_t i = 0; i < 20; ++i) {
      EXPECT_TRUE(tensors[static_cast<size_t>(i)].eq(2.0 * static_cast<double>(i) + 1).all().item<bool>());
    }
    EXPECT_GT(group.waited().count(), 0);
  });
}

TEST(ProcessGroupTest, RefusesTensorsThatDoNotFit) {
  const ProcessGroup alone;
  EXPECT_ANY_THROW(alone.start_all_gather(at::empty({3}), at::empty({2})));
  EXPECT_ANY_THROW(alone.set_value("a", "b"));
  EXPECT_EQ(alone.broadcast_text("a"), "a");
  EXPECT_EQ(alone.size(), 1);
}

}  // namespace
}  // namespace contrastive::distributed
