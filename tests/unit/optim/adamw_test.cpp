#include "contrastive/optim/adamw.h"

#include <string>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/models/precision.h"
#include "contrastive/models/transformer.h"

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

TEST(AdamWTest, RatesAndDecaysPerParameterEqualAnOptimizerForEach) {
  const auto together = two_parameters(), apart = two_parameters();
  AdamW both(together, {}, {{.decay = 0.5}, {.decay = 0.1}});
  AdamW weight({apart[0]}, {}, {{.decay = 0.5}}), bias({apart[1]}, {}, {{.decay = 0.1}});
  for (uint64_t step = 0; step < 3; ++step) {
    set_gradients(together, 10 * step);
    set_gradients(apart, 10 * step);
    both.step(std::vector<double>{0.01, 0.03});
    weight.step(0.01);
    bias.step(0.03);
  }
  for (size_t i = 0; i < together.size(); ++i) {
    EXPECT_TRUE(test::tensors_equal(together[i].first, together[i].second.detach(), apart[i].second.detach()));
  }
}

TEST(AdamWTest, FirstStepInDoublePrecisionIsTheTextbookFormula) {
  const auto parameters = two_parameters(at::kDouble);
  const auto start = parameters[0].second.detach().clone();
  AdamW optimizer(parameters, {.beta1 = 0.9, .beta2 = 0.99, .eps = 1e-3, .weight_decay = 0.1}, open_clip_decays);
  set_gradients(parameters, 3);
  const auto gradient = parameters[0].second.grad().clone();
  optimizer.step(0.01);
  const auto expected = start - 0.01 * (0.1 * start + gradient / (gradient.abs() + 1e-3));
  EXPECT_TRUE(test::tensors_near("weight", parameters[0].second, expected, {1e-14, 0}));
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
  for (const auto* part : {"[adamw] the optimizer state doesn't fit the parameters", "step: missing, expected []",
                           "exp_avg.w.weight: expected [4, 5], found [7]", "exp_avg.other: unexpected, [2]"}) {
    EXPECT_NE(message.find(part), std::string::npos) << part << " in " << message;
  }
}

TEST(AdamWTest, ParametersOfSeveralDtypesAreRefused) {
  auto parameters = two_parameters();
  parameters[1].second = parameters[1].second.to(at::kDouble);
  EXPECT_THROW(AdamW(parameters, {}, open_clip_decays), c10::Error);
  EXPECT_THROW(AdamW({}, {}, open_clip_decays), c10::Error);
}

/// The parameters after some steps in bf16, in which somebody else changes one of them, too.
NamedTensors trained_in_bf16(bool renews_copies) {
  models::TransformerOptions options;
  options.width = 32;
  options.layers = 2;
  options.heads = 4;
  models::Transformer module(options, at::kCPU);
  auto generator = at::make_generator<at::CPUGeneratorImpl>(uint64_t{1});
  module->reset_parameters(generator);
  module->train();
  NamedTensors parameters;
  for (const auto& item : module->named_parameters()) parameters.emplace_back(item.key(), item.value());
  AdamW optimizer(parameters, {}, open_clip_decays);
  if (renews_copies) optimizer.renew_copies(models::compute_copies(*module));
  for (uint64_t step = 0; step < 4; ++step) {
    const models::AutocastGuard autocast(at::kCPU, true);
    const auto output = module->forward(test::random_normal({3, 7, 32}, step, at::kBFloat16));
    output.to(at::kFloat).square().mean().backward();
    optimizer.step(1e-2);
    optimizer.zero_grad();
    const at::NoGradGuard no_grad;
    if (step == 1) parameters.front().second.mul_(0.5);
  }
  return parameters;
}

TEST(AdamWTest, RenewedCopiesOfWeightsGiveTheStepsOfCopiesMadeForEveryPass) {
  const auto renewed = trained_in_bf16(true), made_anew = trained_in_bf16(false);
  for (size_t i = 0; i < renewed.size(); ++i) {
    EXPECT_TRUE(test::tensors_equal(renewed[i].first, renewed[i].second.detach(), made_anew[i].second.detach()));
  }
}

}  // namespace
}  // namespace contrastive::optim
