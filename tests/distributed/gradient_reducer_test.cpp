#include "contrastive/distributed/gradient_reducer.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"

#include "tests/support/errors.h"
#include "tests/support/ranks.h"

namespace contrastive::distributed {
namespace {

using test::message_of;
using test::run_on_ranks;

constexpr int64_t kRows = 24;

torch::Tensor draw(at::IntArrayRef sizes, uint64_t seed, torch::ScalarType dtype) {
  return at::randn(sizes, at::make_generator<at::CPUGeneratorImpl>(seed), at::TensorOptions(at::kDouble)).to(dtype);
}

/// A network whose parameters have odd sizes, one of them stored in another order.
struct Network {
  explicit Network(torch::ScalarType dtype) {
    const auto add = [&](const char* name, torch::Tensor values) {
      parameters.emplace_back(name, values.requires_grad_());
    };
    add("first", draw({7, 5}, 1, dtype));
    add("bias", draw({5}, 2, dtype));
    add("second", draw({6, 5}, 3, dtype).t());
    add("scale", draw({}, 4, dtype));
  }
  torch::Tensor loss(const torch::Tensor& x) const {
    const auto hidden = x.mm(parameters[0].second).add(parameters[1].second).tanh();
    return hidden.mm(parameters[2].second).mul(parameters[3].second).pow(2).sum() / kRows;
  }
  NamedTensors parameters;
};

std::vector<torch::Tensor> whole_batch_gradients(torch::ScalarType dtype) {
  const Network network(dtype);
  network.loss(draw({kRows, 7}, 9, dtype)).backward();
  std::vector<torch::Tensor> gradients;
  for (const auto& [name, parameter] : network.parameters) gradients.push_back(parameter.grad());
  return gradients;
}

double largest_difference(const NamedTensors& parameters, const std::vector<torch::Tensor>& expected) {
  double largest = 0;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const auto scale = expected[i].abs().max().item<double>();
    largest = std::max(largest, (parameters[i].second.grad() - expected[i]).abs().max().item<double>() / scale);
  }
  return largest;
}

torch::Tensor own_rows(const torch::Tensor& x, const ProcessGroup& group) {
  const auto rows = x.size(0) / group.size();
  return x.narrow(0, group.rank() * rows, rows);
}

void check_steps(const ProcessGroup& group, const ReducerOptions& options, torch::ScalarType dtype, double tolerance) {
  const auto expected = whole_batch_gradients(dtype);
  const Network network(dtype);
  GradientReducer reducer(network.parameters, group, options);
  for (int step = 0; step < 3; ++step) {  // nothing of an earlier step stays
    if (group.is_alone()) {
      for (const auto& [name, parameter] : network.parameters) parameter.mutable_grad() = torch::Tensor();
    }
    reducer.start_step();
    reducer.arm();
    network.loss(own_rows(draw({kRows, 7}, 9, dtype), group)).backward();
    reducer.finish();
    EXPECT_LE(largest_difference(network.parameters, expected), tolerance) << group.size() << " ranks, step " << step;
  }
  NamedTensors gradients;
  for (const auto& [name, parameter] : network.parameters) gradients.emplace_back(name, parameter.grad());
  EXPECT_NO_THROW(require_same_bits(gradients, group, "after the step"));
}

TEST(GradientReducerTest, SumsEqualTheWholeBatchWhateverTheBuckets) {
  for (const int ranks : {1, 2, 3, 4}) {
    run_on_ranks(ranks, [](const ProcessGroup& group) {
      check_steps(group, {}, at::kDouble, 1e-13);
      check_steps(group, {.first_bucket_bytes = 1, .bucket_bytes = 1}, at::kDouble, 1e-13);
      check_steps(group, {.first_bucket_bytes = 200, .bucket_bytes = 100}, at::kFloat, 1e-6);
    });
  }
}

TEST(GradientReducerTest, Bf16TransportRoundsTwiceAndNotWithEachRank) {
  run_on_ranks(4, [](const ProcessGroup& group) {
    // Half a unit in the last place of 8 bits for each rank's part (these may cancel) and once for the sum.
    check_steps(group, {.first_bucket_bytes = 100, .bucket_bytes = 100, .bf16 = true}, at::kFloat, 0.02);
  });
}

TEST(GradientReducerTest, EarlierBackwardPassesOfAStepAddUpAndAreSentOnce) {
  run_on_ranks(2, [](const ProcessGroup& group) {
    const auto expected = whole_batch_gradients(at::kDouble);
    const Network network(at::kDouble);
    GradientReducer reducer(network.parameters, group, {.first_bucket_bytes = 1, .bucket_bytes = 1});
    const auto rows = own_rows(draw({kRows, 7}, 9, at::kDouble), group);
    reducer.start_step();
    const auto parts = rows.chunk(3);
    network.loss(parts[0]).backward();
    network.loss(parts[1]).backward();
    reducer.arm();
    network.loss(parts[2]).backward();
    reducer.finish();
    EXPECT_LE(largest_difference(network.parameters, expected), 1e-13);
  });
}

TEST(GradientReducerTest, SendsGradientsThatWereCompleteBeforeTheLastPass) {
  run_on_ranks(2, [](const ProcessGroup& group) {
    auto first = at::ones({3}).requires_grad_(), second = at::ones({2}).requires_grad_();
    GradientReducer reducer({{"first", first}, {"second", second}}, group);
    reducer.start_step();
    (first.sum() * (group.rank() + 1)).backward();
    reducer.arm({"first"});
    second.sum().backward();
    reducer.finish();
    EXPECT_TRUE(first.grad().eq(3).all().item<bool>());
    EXPECT_TRUE(second.grad().eq(2).all().item<bool>());
  });
}

TEST(GradientReducerTest, NamesParametersThatTheLossDoesNotDependOn) {
  run_on_ranks(2, [](const ProcessGroup& group) {
    auto used = at::ones({3}).requires_grad_(), unused = at::ones({2}).requires_grad_();
    GradientReducer reducer({{"used", used}, {"unused", unused}}, group);
    reducer.start_step();
    reducer.arm();
    used.sum().backward();
    const auto message = message_of<c10::Error>([&] { reducer.finish(); });
    EXPECT_NE(message.find("the loss does not depend on these parameters: unused;"), std::string::npos) << message;
  });
}

TEST(GradientReducerTest, GoesAwayWithoutATrace) {
  run_on_ranks(2, [](const ProcessGroup& group) {
    auto parameter = at::ones({3}).requires_grad_();
    { const GradientReducer reducer({{"parameter", parameter}}, group); }
    parameter.sum().backward();
    EXPECT_TRUE(parameter.grad().eq(1).all().item<bool>());
  });
}

TEST(SameTensorsTest, BroadcastsEveryDtypeAndLayout) {
  run_on_ranks(3, [](const ProcessGroup& group) {
    const auto root = 1;
    const auto make = [](int64_t rank) {
      const auto base = draw({4, 3}, 20 + static_cast<uint64_t>(rank), at::kDouble);
      return NamedTensors{{"a", base},
                          {"b", base.to(at::kFloat).t()},
                          {"c", base.to(at::kBFloat16)},
                          {"d", base.mul(10).to(at::kLong)},
                          {"e", base.sum()}};
    };
    const auto tensors = make(group.rank());
    broadcast_all(tensors, group, root);
    const auto expected = make(root);
    for (size_t i = 0; i < tensors.size(); ++i) EXPECT_TRUE(tensors[i].second.equal(expected[i].second)) << i;
    EXPECT_NO_THROW(require_same_bits(tensors, group, "after the broadcast"));
  });
}

TEST(SameTensorsTest, NamesTheTensorAndTheRankThatDiffer) {
  run_on_ranks(3, [](const ProcessGroup& group) {
    auto good = at::ones({5}), bad = at::ones({6}, at::kDouble);
    if (group.rank() == 2) bad[3] = std::nextafter(1.0, 2.0);
    const auto message = message_of([&] { require_same_bits({{"good", good}, {"bad", bad}}, group, "step 7"); });
    EXPECT_EQ(message, "[ranks] step 7, bad has other values on rank 2 than on rank 0 (1 of 2 tensors)");
  });
}

}  // namespace
}  // namespace contrastive::distributed
