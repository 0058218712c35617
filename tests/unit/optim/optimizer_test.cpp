#include "contrastive/optim/optimizer.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/optim/adafactor.h"
#include "contrastive/optim/adamw.h"
#include "contrastive/optim/lion.h"

#include "tests/support/errors.h"
#include "tests/support/tensors.h"

/// What holds for every optimiser.
namespace contrastive::optim {
namespace {

NamedTensors two_parameters() {
  return {{"w.weight", test::random_normal({40, 33}, 1).requires_grad_()},
          {"w.bias", test::random_normal({5}, 2).requires_grad_()}};
}

void set_gradients(const NamedTensors& parameters, uint64_t seed) {
  for (const auto& [name, parameter] : parameters) {
    auto leaf = parameter;
    leaf.mutable_grad() = test::random_normal(parameter.sizes(), seed++, parameter.scalar_type());
  }
}

class OptimizerTest : public ::testing::TestWithParam<std::string> {
 protected:
  static std::unique_ptr<Optimizer> make(const NamedTensors& parameters, std::vector<ParameterSettings> settings) {
    if (GetParam() == "adamw") return std::make_unique<AdamW>(parameters, AdamWOptions{}, std::move(settings));
    if (GetParam() == "lion") return std::make_unique<Lion>(parameters, LionOptions{}, std::move(settings));
    return std::make_unique<Adafactor>(parameters, AdafactorOptions{}, std::move(settings));
  }
  static std::unique_ptr<Optimizer> make(const NamedTensors& parameters) {
    return make(parameters, {{.decay = 0.1}, {.decay = 0}});
  }
};

INSTANTIATE_TEST_SUITE_P(All, OptimizerTest, ::testing::Values("adamw", "adafactor", "lion"));

NamedTensors copies(const NamedTensors& tensors) {
  NamedTensors result;
  for (const auto& [name, tensor] : tensors) {
    result.emplace_back(name, tensor.detach().clone().requires_grad_(tensor.requires_grad()));
  }
  return result;
}

void expect_equal(const NamedTensors& actual, const NamedTensors& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    EXPECT_EQ(actual[i].first, expected[i].first);
    EXPECT_TRUE(test::same_bytes(actual[i].second.detach(), expected[i].second.detach())) << actual[i].first;
  }
}

TEST_P(OptimizerTest, KnowsItsName) {
  EXPECT_EQ(make(two_parameters())->name(), GetParam());
}

TEST_P(OptimizerTest, ContinuingFromASavedStateEqualsNeverStopping) {
  const auto a = two_parameters();
  const auto first = make(a);
  set_gradients(a, 1);
  first->step(0.01);
  const auto b = copies(a), saved = copies(first->state());
  const auto second = make(b);
  second->load_state(saved);
  for (auto* optimizer : {first.get(), second.get()}) {
    set_gradients(optimizer->parameters(), 5);
    optimizer->step(0.01);
  }
  expect_equal(b, a);
  expect_equal(second->state(), first->state());
}

TEST_P(OptimizerTest, StateSharesItsStorage) {
  const auto optimizer = make(two_parameters());
  const auto step = test::by_name(optimizer->state()).at("step");
  optimizer->step(0.01);
  EXPECT_EQ(step.item<float>(), 1.0F);
}

TEST_P(OptimizerTest, WorksParameterByParameterSoThatShardsGiveTheSameBits) {
  const auto together = two_parameters(), apart = two_parameters();
  const auto both = make(together);
  const auto weight = make({apart[0]}, {{.decay = 0.1}}), bias = make({apart[1]}, {{.decay = 0}});
  for (uint64_t step = 0; step < 3; ++step) {
    set_gradients(together, 10 * step);
    set_gradients(apart, 10 * step);
    const auto divisor = at::full({}, 3.0);
    both->step(std::vector<double>{0.01, 0.02}, divisor);
    weight->step(0.01, divisor);
    bias->step(0.02, divisor);
  }
  expect_equal(together, apart);
}

TEST_P(OptimizerTest, ADivisorEqualsGradientsDividedBeforehand) {
  const auto a = two_parameters(), b = two_parameters();
  const auto first = make(a), second = make(b);
  for (uint64_t step = 0; step < 3; ++step) {
    set_gradients(a, 10 * step);
    set_gradients(b, 10 * step);
    for (const auto& [name, parameter] : a) parameter.grad().mul_(8);
    first->step(0.01, at::full({}, 8.0));
    second->step(0.01);
  }
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_TRUE(test::tensors_near(a[i].first, a[i].second, b[i].second, {1e-7, 0}));
  }
}

TEST_P(OptimizerTest, AtRateZeroParametersStayButMomentsMove) {
  const auto parameters = two_parameters();
  const auto before = copies(parameters);
  const auto optimizer = make(parameters);
  const auto state = copies(optimizer->state());
  set_gradients(parameters, 3);
  optimizer->step(0.0);
  expect_equal(parameters, before);
  EXPECT_FALSE(at::equal(optimizer->state()[0].second, state[0].second));
}

TEST_P(OptimizerTest, WithoutGradientAParameterAndItsMomentsStayAsTheyAre) {
  const auto parameters = two_parameters();
  const auto before = copies(parameters);
  const auto optimizer = make(parameters);
  const auto state = test::by_name(copies(optimizer->state()));
  set_gradients({parameters[0]}, 3);
  optimizer->step(0.01);
  EXPECT_TRUE(test::same_bytes(parameters[1].second.detach(), before[1].second.detach()));
  EXPECT_FALSE(test::same_bytes(parameters[0].second.detach(), before[0].second.detach()));
  for (const auto& [name, tensor] : optimizer->state()) {
    EXPECT_TRUE(!name.ends_with("w.bias") || test::same_bytes(tensor, state.at(name))) << name;
  }
}

TEST_P(OptimizerTest, AParameterThatStartsLateWithItsOwnCountGoesLikeOneThatStartsThen) {
  const auto late = two_parameters(), alone = two_parameters();
  const auto optimizer = make(late, {{.decay = 0.1}, {.own_step = true}});
  for (uint64_t step = 0; step < 20; ++step) {
    set_gradients({late[0]}, step);
    optimizer->step(0.01);
  }
  const auto fresh = make({alone[1]}, {{}});
  for (uint64_t step = 0; step < 3; ++step) {
    set_gradients(late, 50 + step);
    set_gradients({alone[1]}, 51 + step);
    optimizer->step(0.01);
    fresh->step(0.01);
  }
  EXPECT_TRUE(test::same_bytes(late[1].second.detach(), alone[1].second.detach()));
  const auto state = test::by_name(optimizer->state());
  EXPECT_EQ(state.at("step").item<float>(), 23.0F);
  EXPECT_EQ(state.at("step.w.bias").item<float>(), 3.0F);
}

TEST_P(OptimizerTest, AStateThatDoesNotFitIsRefusedByName) {
  const auto optimizer = make(two_parameters());
  auto state = optimizer->state();
  std::erase_if(state, [](const auto& item) { return item.first == "step"; });
  state[0].second = at::zeros({7});
  state.emplace_back("exp_avg.other", at::zeros({2}));
  EXPECT_EQ(test::message_of<CheckpointError>([&] { optimizer->load_state(state); }),
            "[" + GetParam() +
                "] the optimizer state doesn't fit the parameters:\n"
                "  exp_avg.w.weight: expected [40, 33], found [7]\n"
                "  step: missing, expected []\n"
                "  exp_avg.other: unexpected, [2]");
}

TEST_P(OptimizerTest, WrongCountsAndMixedDtypesAreRefused) {
  auto parameters = two_parameters();
  EXPECT_THROW(make(parameters)->step(std::vector<double>{0.1}), c10::Error);
  EXPECT_THROW(make(parameters, {{}}), c10::Error);
  EXPECT_THROW(make({}, {}), c10::Error);
  parameters[1].second = parameters[1].second.to(at::kDouble);
  EXPECT_THROW(make(parameters), c10::Error);
}

}  // namespace
}  // namespace contrastive::optim
