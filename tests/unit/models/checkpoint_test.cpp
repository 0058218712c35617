#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <c10/core/Allocator.h>
#include <c10/util/Exception.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "contrastive/models/clip_model.h"
#include "contrastive/models/precision.h"
#include "contrastive/models/text_transformer.h"

#include "tests/support/tensors.h"

// Activation checkpointing: what it computes must have the same bits as without.
namespace contrastive::models {
namespace {

ModelConfig vit() {
  ModelConfig config;
  config.embed_dim = 24;
  config.vision_cfg = {.layers = {3}, .width = 32, .head_width = 16, .patch_size = 8, .image_size = 32};
  config.text_cfg = {.context_length = 12, .vocab_size = 100, .width = 32, .heads = 2, .layers = 3};
  return config;
}

ModelConfig vit_with_dropped_patches() {
  auto config = vit();
  config.quick_gelu = true;
  config.vision_cfg.pool_type = "avg";
  config.vision_cfg.patch_dropout = 0.5;
  config.vision_cfg.ls_init_value = 0.1;
  return config;
}

ModelConfig siglip() {
  auto config = vit();
  config.custom_text = true;
  config.vision_cfg.timm_model_name = "vit_base_patch16_siglip_224";
  config.vision_cfg.width = config.embed_dim;
  config.vision_cfg.head_width = 8;
  config.vision_cfg.patch_dropout = 0.3;
  config.text_cfg.no_causal_mask = true;
  config.text_cfg.pool_type = "last";
  config.text_cfg.proj_bias = true;
  return config;
}

ModelConfig resnet() {
  auto config = vit();
  config.vision_cfg = {.layers = {1, 2, 1, 1}, .width = 8, .head_width = 32, .image_size = 32};
  return config;
}

ClipModel make(ModelConfig config, bool checkpoint) {
  config.checkpoint_activations = checkpoint;
  ClipModel model(config);
  model->reset_parameters(at::detail::createCPUGenerator(1));
  const at::NoGradGuard no_grad;
  for (auto& tensor : model->visual->parameters()) {
    if (tensor.count_nonzero().item<int64_t>() == 0) tensor.fill_(0.5);  // ResNet blocks that start as their shortcut
  }
  return model;
}

torch::Tensor tokens_of(int64_t rows) {
  auto tokens = at::zeros({rows, 12}, at::kLong);
  for (int64_t i = 0; i < rows; ++i) tokens[i].narrow(0, 0, 4).copy_(test::indices({98, 1 + i, 5 + i % 3, 99}));
  return tokens;
}

struct Inputs {
  torch::Tensor images, tokens, image_weights, text_weights;
};

Inputs inputs_for(const ClipModel& model, int64_t rows) {
  const auto side = model->visual->image_size(), width = model->config().embed_dim;
  return {test::random_normal({rows, 3, side, side}, 1), tokens_of(rows), test::random_normal({rows, width}, 2),
          test::random_normal({rows, width}, 3)};
}

/// Forward and back; the features.
torch::Tensor step(ClipModel& model, const Inputs& inputs, bool bf16, int64_t first_row = 0) {
  model->visual->seed_step(17, first_row);
  ClipOutput output;
  {
    const AutocastGuard autocast(at::kCPU, bf16);
    output = model->forward(inputs.images, inputs.tokens);
  }
  const auto loss =
      (output.image_features * inputs.image_weights).sum() + (output.text_features * inputs.text_weights).sum();
  if (loss.requires_grad()) (loss * output.logit_scale).backward();
  return at::cat({output.image_features.detach(), output.text_features.detach()});
}

/// As an accumulated batch: features without a graph, then each half with one.
void step_in_halves(ClipModel& model, const Inputs& inputs, bool bf16) {
  const auto half = inputs.images.size(0) / 2;
  {
    const at::NoGradGuard no_grad;
    step(model, inputs, bf16);
  }
  for (const auto begin : {int64_t{0}, half}) {
    const auto part = [&](const torch::Tensor& rows) { return rows.narrow(0, begin, half); };
    step(model, {part(inputs.images), part(inputs.tokens), part(inputs.image_weights), part(inputs.text_weights)}, bf16,
         begin);
  }
}

void expect_equal_gradients(const ClipModel& actual, const ClipModel& expected) {
  const auto wanted = test::by_name(expected->state());
  for (const auto& [name, tensor] : actual->state()) {
    EXPECT_TRUE(test::tensors_equal(name, tensor.detach(), wanted.at(name).detach()));  // also running statistics
    const auto gradient = wanted.at(name).grad();
    ASSERT_EQ(tensor.grad().defined(), gradient.defined()) << name;
    if (!gradient.defined()) continue;
    EXPECT_TRUE(test::tensors_equal(name + " gradient", tensor.grad(), gradient));
  }
}

TEST(ActivationCheckpointTest, FeaturesGradientsAndRunningStatisticsHaveTheSameBits) {
  for (const auto& config : {vit(), vit_with_dropped_patches(), siglip(), resnet()}) {
    for (const bool bf16 : {false, true}) {
      SCOPED_TRACE(testing::Message() << config.vision_cfg.width << (bf16 ? " in bf16" : ""));
      auto plain = make(config, false), saving = make(config, true);
      const auto inputs = inputs_for(plain, 4);
      EXPECT_TRUE(test::tensors_equal("features", step(saving, inputs, bf16), step(plain, inputs, bf16)));
      expect_equal_gradients(saving, plain);
      step_in_halves(plain, inputs, bf16);
      step_in_halves(saving, inputs, bf16);
      expect_equal_gradients(saving, plain);
      EXPECT_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
    }
  }
}

// The weights that the forward pass has cast are still in autocast's cache then.
TEST(ActivationCheckpointTest, TheBackwardPassMayRunUnderAutocast) {
  auto plain = make(vit(), false), saving = make(vit(), true);
  const auto inputs = inputs_for(plain, 4);
  for (auto& model : {&plain, &saving}) {
    const AutocastGuard outer(at::kCPU, true);
    step(*model, inputs, true);
    EXPECT_TRUE(at::autocast::is_autocast_enabled(at::kCPU));
    EXPECT_TRUE(at::autocast::is_autocast_cache_enabled());
  }
  expect_equal_gradients(saving, plain);
}

TEST(ActivationCheckpointTest, ParametersGetTheirGradientsWhereTheInputNeedsNone) {
  auto plain = make(vit(), false), saving = make(vit(), true);
  for (auto& model : {plain, saving}) {
    for (auto& [name, tensor] : model->state()) {
      const bool trains =
          name.find("resblocks") != std::string::npos && name.find("resblocks.0.ln_1") == std::string::npos;
      if (tensor.is_floating_point()) tensor.set_requires_grad(trains);
    }
  }
  const auto inputs = inputs_for(plain, 4);
  step(plain, inputs, false);
  step(saving, inputs, false);
  EXPECT_TRUE(saving->text->as<TextTransformerImpl>()->transformer->blocks()[0]->mlp->c_fc->weight.grad().defined());
  expect_equal_gradients(saving, plain);
}

TEST(ActivationCheckpointTest, ALockedTowerHasNoGraph) {
  auto model = make(vit(), true);
  for (auto& parameter : model->visual->parameters()) parameter.set_requires_grad(false);
  const auto inputs = inputs_for(model, 4);
  EXPECT_FALSE(model->encode_image(inputs.images).requires_grad());
  EXPECT_TRUE(model->encode_text(inputs.tokens).requires_grad());
}

TEST(ActivationCheckpointTest, GradientsThatAreToBeReturnedAreRefused) {
  auto model = make(vit(), true);
  const auto features = model->encode_text(tokens_of(2));
  try {
    torch::autograd::grad({features.sum()}, {model->text->as<TextTransformerImpl>()->positional_embedding});
    FAIL();
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find("[activation checkpointing] the backward pass must add gradients"),
              std::string::npos)
        << error.what();
  }
}

/// The most memory that tensors of this thread took at once while this object was in use.
class PeakMemory : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override {
    now_ += bytes;
    peak_ = std::max(peak_, now_);
  }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t bytes() const { return peak_; }

 private:
  int64_t now_ = 0, peak_ = 0;
};

int64_t peak_of_step(const ModelConfig& config, bool checkpoint) {
  auto model = make(config, checkpoint);
  const auto inputs = inputs_for(model, 16);
  step(model, inputs, false);  // takes the memory of the gradients
  const auto peak = std::make_shared<PeakMemory>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, peak);
  step(model, inputs, false);
  return peak->bytes();
}

// What is kept falls to one tensor a block; one block at a time has all of its own.
TEST(ActivationCheckpointTest, AStepOfADeepModelTakesAFractionOfTheMemory) {
  auto deep = vit();
  deep.vision_cfg.layers = {16};
  deep.text_cfg.layers = 1;
  const auto plain = peak_of_step(deep, false), saving = peak_of_step(deep, true);
  EXPECT_LT(saving * 10, plain * 3) << plain;  // a block keeps little more than its input by itself
  auto wide_resnet = resnet();
  wide_resnet.vision_cfg.layers = {6, 6, 6, 6};
  EXPECT_LT(peak_of_step(wide_resnet, true), peak_of_step(wide_resnet, false) / 2);
}

}  // namespace
}  // namespace contrastive::models
