#include "contrastive/optim/adamw.h"

#include <string>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/models/clip_model.h"

#include "tests/support/tensors.h"

namespace contrastive::optim {
namespace {

NamedTensors two_parameters(torch::ScalarType dtype = at::kFloat) {
  return {{"w.weight", test::random_normal({4, 5}, 1, dtype).requires_grad_()},
          {"w.bias", test::random_normal({5}, 2, dtype).requires_grad_()}};
}

void set_gradients(const NamedTensors& parameters, uint64_t seed, double factor = 1) {
  for (const auto& [name, parameter] : parameters) {
    auto leaf = parameter;
    leaf.mutable_grad() = test::random_normal(parameter.sizes(), seed++, parameter.scalar_type()) * factor;
  }
}

std::string load_error(AdamW& optimizer, const NamedTensors& state) {
  try {
    optimizer.load_state(state);
  } catch (const CheckpointError& error) {
    return error.what();
  }
  return "";
}

models::ModelConfig vit_b32() {
  models::ModelConfig config;
  config.vision_cfg.patch_size = 32;
  return config;
}

struct Counts {
  int64_t tensors = 0, values = 0;
};

Counts decayed(const NamedTensors& parameters, const DecayRule& rule) {
  Counts counts;
  for (const auto& [name, tensor] : parameters) {
    if (rule(name, tensor)) counts = {counts.tensors + 1, counts.values + tensor.numel()};
  }
  return counts;
}

TEST(DecayRuleTest, ViTB32HasTheDecaySetsOfBothOpenClipRules) {
  const auto parameters = models::ClipModel(vit_b32(), at::kMeta)->named_trainable();
  const auto classic = decayed(parameters, decay_rule("open_clip_3"));
  EXPECT_EQ(parameters.size(), 302U);
  EXPECT_EQ(classic.tensors, 102);
  EXPECT_EQ(classic.values, 151072768);
  EXPECT_EQ(decayed(parameters, decay_rule("open_clip_main")).tensors, 100);
}

TEST(DecayRuleTest, OnlyTheClassicRuleDecaysPositionalEmbeddings) {
  const auto matrix = at::zeros({2, 2});
  EXPECT_TRUE(open_clip_decays("visual.positional_embedding", matrix));
  EXPECT_FALSE(matrix_decays("visual.positional_embedding", matrix));
  EXPECT_FALSE(matrix_decays("positional_embedding", matrix));
  EXPECT_TRUE(matrix_decays("visual.attnpool.positional_embedding", matrix));
  EXPECT_FALSE(open_clip_decays("visual.class_embedding", at::zeros({2})));
  EXPECT_FALSE(open_clip_decays("logit_scale", matrix));
}

TEST(DecayRuleTest, AnUnknownRuleIsAnError) {
  try {
    decay_rule("all");
    FAIL() << "no error";
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(), "[decay_rule] expected open_clip_3 or open_clip_main, found all");
  }
}

TEST(AdamWTest, ADivisorEqualsGradientsDividedBeforehand) {
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    const auto a = two_parameters(dtype), b = two_parameters(dtype);
    AdamW first(a, {}, open_clip_decays), second(b, {}, open_clip_decays);
    for (uint64_t step = 0; step < 3; ++step) {
      set_gradients(a, 10 * step, 8);
      set_gradients(b, 10 * step, 1);
      first.step(0.01, at::full({}, 8.0));
      second.step(0.01);
    }
    for (size_t i = 0; i < a.size(); ++i)
      EXPECT_TRUE(test::tensors_near(a[i].first, a[i].second, b[i].second, {1e-7, 0}));
  }
}

TEST(AdamWTest, WithAZeroGradientOnlyDecayedParametersShrink) {
  const auto parameters = two_parameters();
  const auto weight = parameters[0].second.detach().clone(), bias = parameters[1].second.detach().clone();
  AdamW optimizer(parameters, {.weight_decay = 0.5}, open_clip_decays);
  set_gradients(parameters, 1, 0);
  optimizer.step(0.1);
  EXPECT_TRUE(test::tensors_near("weight", parameters[0].second, weight * 0.95, {1e-6, 0}));
  EXPECT_TRUE(test::tensors_equal("bias", parameters[1].second.detach(), bias));
}

TEST(AdamWTest, AParameterWithoutGradientStaysAsItIs) {
  const auto parameters = two_parameters();
  const auto bias = parameters[1].second.detach().clone();
  AdamW optimizer(parameters, {}, open_clip_decays);
  set_gradients({parameters[0]}, 1);
  optimizer.step(0.1);
  EXPECT_TRUE(test::tensors_equal("bias", parameters[1].second.detach(), bias));
  optimizer.zero_grad();
  EXPECT_FALSE(parameters[0].second.grad().defined());
}

TEST(AdamWTest, ContinuingFromASavedStateEqualsNeverStopping) {
  const auto a = two_parameters();
  AdamW first(a, {}, open_clip_decays);
  set_gradients(a, 1);
  first.step(0.01);
  NamedTensors b, saved;
  for (const auto& [name, tensor] : a) b.emplace_back(name, tensor.detach().clone().requires_grad_());
  for (const auto& [name, tensor] : first.state()) saved.emplace_back(name, tensor.clone());
  AdamW second(b, {}, open_clip_decays);
  second.load_state(saved);
  for (auto* optimizer : {&first, &second}) {
    set_gradients(optimizer->parameters(), 5);
    optimizer->step(0.01);
  }
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_TRUE(test::tensors_equal(a[i].first, b[i].second.detach(), a[i].second.detach()));
  }
  EXPECT_EQ(test::by_name(second.state()).at("step").item<float>(), 2.0F);
}

TEST(AdamWTest, AStateThatDoesNotFitIsRefusedByName) {
  AdamW optimizer(two_parameters(), {}, open_clip_decays);
  auto state = optimizer.state();
  std::erase_if(state, [](const auto& item) { return item.first == "step"; });
  state[0].second = at::zeros({7});
  state.emplace_back("exp_avg.other", at::zeros({2}));
  const auto message = load_error(optimizer, state);
  for (const auto* part : {"step: missing, expected []", "exp_avg.w.weight: expected [4, 5], found [7]",
                           "exp_avg.other: unexpected, [2]"}) {
    EXPECT_NE(message.find(part), std::string::npos) << part << " in " << message;
  }
}

TEST(AdamWTest, ParametersOfSeveralDtypesAreRefused) {
  auto parameters = two_parameters();
  parameters[1].second = parameters[1].second.to(at::kDouble);
  EXPECT_THROW(AdamW(parameters, {}, open_clip_decays), c10::Error);
  EXPECT_THROW(AdamW({}, {}, open_clip_decays), c10::Error);
}

}  // namespace
}  // namespace contrastive::optim
