#include "train/train_step.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "contrastive/optim/adamw.h"
#include "contrastive/optim/parameter_shards.h"

#include "tests/support/ranks.h"
#include "tests/support/tensors.h"

namespace contrastive::train::detail {
namespace {

using distributed::ProcessGroup;
using test::run_on_ranks;

constexpr int64_t kRows = 12;
constexpr uint64_t kSeed = 41;

models::ModelConfig vit(bool sigmoid) {
  models::ModelConfig config;
  config.embed_dim = 8;
  config.vision_cfg = {.layers = {2}, .width = 16, .head_width = 8, .patch_size = 4, .image_size = 16};
  config.vision_cfg.patch_dropout = 0.5;
  config.text_cfg = {.context_length = 6, .vocab_size = 20, .width = 16, .heads = 2, .layers = 1};
  if (sigmoid) config.init_logit_bias = -3;
  return config;
}

models::ModelConfig resnet() {
  auto config = vit(false);
  config.vision_cfg = {.layers = {1, 1, 1, 1}, .width = 4, .head_width = 16, .image_size = 32};
  return config;
}

models::ClipModel make_model(const models::ModelConfig& config, torch::ScalarType dtype = at::kDouble) {
  models::ClipModel model(config);
  model->reset_parameters(at::make_generator<at::CPUGeneratorImpl>(uint64_t{5}));
  model->to(dtype);
  model->train();
  return model;
}

/// The whole batch, or this rank's rows of it.
data::Batch make_batch(int64_t image_size, const ProcessGroup& group = {}) {
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(uint64_t{6});
  const auto images = at::randint(0, 256, {kRows, image_size, image_size, 3}, generator, at::kByte);
  const auto tokens = at::randint(0, 20, {kRows, 6}, generator, at::kLong);
  const auto rows = kRows / group.size();
  return {.images = images.narrow(0, group.rank() * rows, rows), .tokens = tokens.narrow(0, group.rank() * rows, rows)};
}

struct Case {
  models::ModelConfig config;
  TrainStepOptions options;
};

/// Loss, gradients and buffers of every rank against one process with the whole batch, twice.
void expect_step_of_whole_batch(const Case& c, const ProcessGroup& group) {
  const auto size = c.config.vision_cfg.image_size;
  auto reference = make_model(c.config), model = make_model(c.config);
  model->set_batch_norm_group(group);
  TrainStep whole(reference, {.size = size}, {});
  TrainStep shared(model, {.size = size}, c.options, group);
  for (int repetition = 0; repetition < 2; ++repetition) {
    for (auto& [name, parameter] : reference->named_trainable()) parameter.mutable_grad() = torch::Tensor();
    if (group.is_alone()) {
      for (auto& [name, parameter] : model->named_trainable()) parameter.mutable_grad() = torch::Tensor();
    }
    const auto expected = whole.forward_backward(make_batch(size), kSeed);
    const auto actual = shared.forward_backward(make_batch(size, group), kSeed);
    EXPECT_NEAR(actual.loss, expected.loss, 1e-12 * expected.loss);
    EXPECT_EQ(actual.accuracy, expected.accuracy);
    EXPECT_NEAR(actual.grad_norm, expected.grad_norm, 1e-11 * expected.grad_norm);
  }
  const auto expected = test::by_name(reference->named_trainable());
  NamedTensors gradients;
  for (const auto& [name, parameter] : model->named_trainable()) {
    EXPECT_TRUE(test::tensors_near(name, parameter.grad(), expected.at(name).grad(), {1e-12, 1e-10}));
    gradients.emplace_back(name, parameter.grad());
  }
  const auto buffers = test::by_name(reference->state());
  for (const auto& [name, buffer] : model->state()) {
    EXPECT_TRUE(test::tensors_near(name, buffer, buffers.at(name), {1e-12, 1e-11}));
  }
  EXPECT_NO_THROW(distributed::require_same_bits(gradients, group, "in the test"));
}

TEST(TrainStepRanksTest, LossAndGradientsAreThoseOfTheWholeBatch) {
  for (const int ranks : {1, 2, 3, 4}) {
    run_on_ranks(ranks, [](const ProcessGroup& group) {
      expect_step_of_whole_batch({vit(false), {}}, group);
      expect_step_of_whole_batch({vit(true), {.reducer = {.first_bucket_bytes = 100, .bucket_bytes = 5000}}}, group);
    });
  }
}

TEST(TrainStepRanksTest, SoTheyAreWithPartsOnEveryRank) {
  for (const int ranks : {2, 4}) {
    run_on_ranks(ranks, [](const ProcessGroup& group) {
      expect_step_of_whole_batch({vit(false), {.accumulate = 3}}, group);
      expect_step_of_whole_batch({vit(true), {.accumulate = 3}}, group);
    });
  }
}

TEST(TrainStepRanksTest, SoTheyAreWithRecomputedActivations) {
  run_on_ranks(2, [](const ProcessGroup& group) {
    for (auto config : {vit(false), resnet()}) {
      config.checkpoint_activations = true;
      expect_step_of_whole_batch({config, {}}, group);
    }
  });
}

TEST(TrainStepRanksTest, BatchNormSeesTheWholeBatch) {
  for (const int ranks : {2, 3}) {
    run_on_ranks(ranks, [](const ProcessGroup& group) { expect_step_of_whole_batch({resnet(), {}}, group); });
  }
}

/// Weights and the owned optimiser state after some steps.
NamedTensors train(const ProcessGroup& group, bool sharded) {
  auto model = make_model(vit(false), at::kFloat);
  TrainStep step(model, {.size = 16}, {}, group);
  const optim::ParameterShards shards(step.parameters(), group, sharded);
  optim::AdamW optimizer(shards.owned(), {}, optim::open_clip_decays);
  for (uint64_t i = 0; i < 4; ++i) {
    step.forward_backward(make_batch(16, group), i);
    optimizer.step(1e-2);
    shards.exchange();
    optimizer.zero_grad();
  }
  auto result = model->state();
  for (auto& tensor : optimizer.state()) result.push_back(tensor);
  return result;
}

TEST(ParameterShardsTest, ASharedOutOptimiserGivesTheSameBits) {
  for (const int ranks : {2, 3}) {
    run_on_ranks(ranks, [](const ProcessGroup& group) {
      const auto whole = test::by_name(train(group, false)), shared = test::by_name(train(group, true));
      EXPECT_LT(shared.size(), whole.size());
      for (const auto& [name, tensor] : shared) EXPECT_TRUE(tensor.equal(whole.at(name))) << name;
    });
  }
}

TEST(ParameterShardsTest, SharesAreEvenToOneParameterAndCoverAll) {
  run_on_ranks(3, [](const ProcessGroup& group) {
    auto model = make_model(vit(false));
    const auto all = model->named_trainable();
    const optim::ParameterShards shards(all, group, true);
    int64_t own = 0, total = 0, largest = 0;
    for (const auto& [name, parameter] : shards.owned()) own += parameter.numel();
    for (const auto& [name, parameter] : all) {
      total += parameter.numel();
      largest = std::max(largest, parameter.numel());
    }
    EXPECT_LE(own, total / group.size() + largest);
    auto sum = at::full({1}, own, at::kLong);
    group.all_reduce(sum);
    EXPECT_EQ(sum.item<int64_t>(), total);
  });
}

}  // namespace
}  // namespace contrastive::train::detail
