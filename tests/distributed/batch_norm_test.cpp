#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "contrastive/distributed/collectives.h"
#include "contrastive/models/clip_model.h"
#include "contrastive/models/layers.h"

#include "tests/support/ranks.h"
#include "tests/support/tensors.h"

// Batch norm over ranks: as one process with all of their images.
namespace contrastive::models {
namespace {

using distributed::ProcessGroup;

constexpr test::Tolerance kDouble{1e-13, 1e-12};
constexpr int64_t kWholeBatch = 12;

/// Every rank's bytes are those of rank 0.
void expect_same_on_all_ranks(const std::string& name, const torch::Tensor& tensor, const ProcessGroup& group) {
  auto first = tensor.detach().clone();
  group.broadcast(first);
  EXPECT_TRUE(test::same_bytes(first, tensor.detach())) << name << " on rank " << group.rank();
}

BatchNorm2d layer(int64_t channels, torch::ScalarType dtype) {
  BatchNorm2d module(channels, at::kCPU);
  module->reset_parameters();
  module->to(dtype);
  const at::NoGradGuard no_grad;
  module->weight.copy_(test::random_normal({channels}, 2, at::kDouble));
  module->bias.copy_(test::random_normal({channels}, 3, at::kDouble));
  return module;
}

struct LayerCase {
  torch::ScalarType dtype;
  at::MemoryFormat order;
  test::Tolerance tolerance;
  bool adds_and_cuts = false;  ///< relu(batch norm + shortcut)
};

/// Rows [begin, end) are this rank's: their number may differ from rank to rank. torch's own in fp64 is the reference.
void check_layer(const ProcessGroup& group, int64_t begin, int64_t end, const LayerCase& tested) {
  const int64_t channels = 19;
  const auto offsets = test::random_normal({channels}, 7, at::kDouble).view({-1, 1, 1}) * 10;
  const auto whole_x = (test::random_normal({kWholeBatch, channels, 5, 5}, 1, at::kDouble) + offsets).to(tested.dtype);
  const auto whole_gradient = test::random_normal(whole_x.sizes(), 4, at::kDouble).to(tested.dtype);
  auto expected = layer(channels, at::kDouble);
  const auto expected_x = whole_x.to(at::kDouble, false, /*copy=*/true).requires_grad_();
  const auto whole_shortcut = test::random_normal(whole_x.sizes(), 5, at::kDouble).to(tested.dtype);
  auto expected_y = at::batch_norm(expected_x, expected->weight, expected->bias, expected->running_mean,
                                   expected->running_var, true, 0.1, 1e-5, false);
  if (tested.adds_and_cuts) expected_y = (expected_y + whole_shortcut).relu();
  expected_y.backward(whole_gradient.to(at::kDouble));

  auto module = layer(channels, tested.dtype == at::kBFloat16 ? at::kFloat : tested.dtype);
  module->set_group(group);
  const auto x = whole_x.slice(0, begin, end).contiguous(tested.order).requires_grad_();
  const auto shortcut = whole_shortcut.slice(0, begin, end).contiguous(tested.order);
  const auto y = tested.adds_and_cuts ? module->forward_relu(x, shortcut) : module->forward(x);
  EXPECT_EQ(y.scalar_type(), tested.dtype);
  EXPECT_TRUE(y.is_contiguous(tested.order));
  y.backward(whole_gradient.slice(0, begin, end));

  const auto expect_near = [&](const char* name, const torch::Tensor& actual, const torch::Tensor& wanted) {
    EXPECT_TRUE(test::tensors_near(name, actual.to(at::kDouble), wanted, tested.tolerance));
  };
  const auto total = [&](const torch::Tensor& share) { return distributed::all_reduce_sum(share, group); };
  expect_near("y", y, expected_y.slice(0, begin, end));
  expect_near("x gradient", x.grad(), expected_x.grad().slice(0, begin, end));
  expect_near("weight gradient", total(module->weight.grad()), expected->weight.grad());
  expect_near("bias gradient", total(module->bias.grad()), expected->bias.grad());
  expect_near("running mean", module->running_mean, expected->running_mean);
  expect_near("running variance", module->running_var, expected->running_var);
  expect_same_on_all_ranks("running mean", module->running_mean, group);
  expect_same_on_all_ranks("running variance", module->running_var, group);
}

const std::vector<LayerCase>& layer_cases() {
  static const std::vector<LayerCase> cases{{at::kDouble, at::MemoryFormat::ChannelsLast, {0, 1e-12}},
                                            {at::kDouble, at::MemoryFormat::Contiguous, {0, 1e-12}},
                                            {at::kFloat, at::MemoryFormat::ChannelsLast, {0, 5e-6}},
                                            {at::kFloat, at::MemoryFormat::Contiguous, {0, 5e-6}},
                                            {at::kBFloat16, at::MemoryFormat::ChannelsLast, {0, 1e-2}},
                                            {at::kDouble, at::MemoryFormat::ChannelsLast, {0, 1e-12}, true},
                                            {at::kDouble, at::MemoryFormat::Contiguous, {0, 1e-12}, true}};
  return cases;
}

ModelConfig tiny_resnet(bool checkpoint) {
  ModelConfig config;
  config.embed_dim = 24;
  config.vision_cfg = {.layers = {1, 1, 1, 1}, .width = 8, .head_width = 32, .image_size = 32};
  config.text_cfg = {.context_length = 8, .vocab_size = 50, .width = 16, .heads = 2, .layers = 1};
  config.checkpoint_activations = checkpoint;
  return config;
}

ClipModel make(bool checkpoint, const ProcessGroup& group) {
  ClipModel model(tiny_resnet(checkpoint));
  model->reset_parameters(at::detail::createCPUGenerator(1));
  model->to(at::kDouble);
  model->set_batch_norm_group(group);
  const at::NoGradGuard no_grad;
  for (auto& tensor : model->parameters()) {
    if (tensor.count_nonzero().item<int64_t>() == 0) tensor.fill_(0.5);  // blocks that start as their shortcut
  }
  return model;
}

/// Features of rows [begin, end) after a step with them.
torch::Tensor step(ClipModel& model, int64_t begin, int64_t end) {
  const auto images = test::random_normal({kWholeBatch, 3, 32, 32}, 1, at::kDouble).slice(0, begin, end);
  const auto weights = test::random_normal({kWholeBatch, 24}, 2, at::kDouble).slice(0, begin, end);
  const auto features = l2_normalize(model->encode_image(images));
  (features * weights).sum().backward();
  return features.detach();
}

void check_model(const ProcessGroup& group, bool checkpoint) {
  const auto rows = kWholeBatch / group.size(), begin = group.rank() * rows;
  auto expected = make(false, {}), actual = make(checkpoint, group);
  const auto whole = step(expected, 0, kWholeBatch);
  const auto features = step(actual, begin, begin + rows);
  if (group.is_alone()) {
    EXPECT_TRUE(test::tensors_equal("features", features, whole));
  }
  EXPECT_TRUE(test::tensors_near("features", features, whole.slice(0, begin, begin + rows), kDouble));
  const auto wanted = test::by_name(expected->state());
  for (const auto& [name, tensor] : actual->state()) {
    if (name.find("visual.") != 0) continue;
    if (name.find("running_") != std::string::npos) {
      EXPECT_TRUE(test::tensors_near(name, tensor, wanted.at(name), kDouble));
      expect_same_on_all_ranks(name, tensor, group);
    } else if (tensor.requires_grad()) {
      const auto total = distributed::all_reduce_sum(tensor.grad(), group);
      EXPECT_TRUE(test::tensors_near(name, total, wanted.at(name).grad(), {1e-12, 1e-11}));
    } else {
      EXPECT_TRUE(test::tensors_equal(name, tensor, wanted.at(name)));
    }
  }
}

TEST(BatchNormOverRanksTest, EqualsOneProcessWithTheWholeBatch) {
  for (const int ranks : {1, 2, 4}) {
    test::run_on_ranks(ranks, [&](const ProcessGroup& group) {
      const auto rows = kWholeBatch / ranks, begin = group.rank() * rows;
      for (const auto& tested : layer_cases()) {
        SCOPED_TRACE(testing::Message() << tested.dtype << " " << tested.order);
        check_layer(group, begin, begin + rows, tested);
      }
      for (const bool checkpoint : {false, true}) check_model(group, checkpoint);
    });
  }
}

TEST(BatchNormOverRanksTest, RanksMayHaveDifferentNumbersOfImages) {
  test::run_on_ranks(3, [](const ProcessGroup& group) {
    const std::vector<int64_t> ends{0, 1, 8, kWholeBatch};
    const auto rank = static_cast<size_t>(group.rank());
    for (const auto& tested : layer_cases()) check_layer(group, ends[rank], ends[rank + 1], tested);
  });
}

}  // namespace
}  // namespace contrastive::models
