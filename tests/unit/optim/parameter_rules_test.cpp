#include "contrastive/optim/parameter_rules.h"

#include <string>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/optim/adamw.h"

#include "tests/support/errors.h"
#include "tests/support/tensors.h"

namespace contrastive::optim {
namespace {

torch::Tensor leaf(at::IntArrayRef sizes) {
  return at::ones(sizes).requires_grad_();
}

/// Of a tiny model, in its order.
NamedTensors model() {
  NamedTensors parameters = {{"logit_scale", leaf({})}, {"visual.trunk.pos_embed", leaf({1, 4, 2})}};
  for (const auto* tower : {"visual.trunk.blocks.", "text.transformer.resblocks."}) {
    for (int block = 0; block < 3; ++block) {
      const auto prefix = tower + std::to_string(block);
      parameters.emplace_back(prefix + ".mlp.weight", leaf({4, 2}));
      parameters.emplace_back(prefix + ".mlp.bias", leaf({4}));
    }
  }
  parameters.emplace_back("text.ln_final.weight", leaf({2}));
  return parameters;
}

PlanDefaults defaults() {
  return {.lr = 0.1,
          .schedule = {.schedule = "constant"},
          .total_steps = 100,
          .weight_decay = 0.5,
          .decays = decay_rule("kernels")};
}

ParameterPlan plan(const std::vector<ParameterRule>& rules) {
  return resolve(model(), rules, defaults());
}

const PlannedParameter& find(const ParameterPlan& plan, const std::string& name) {
  for (const auto& planned : plan.parameters()) {
    if (planned.name == name) return planned;
  }
  throw std::runtime_error("no parameter " + name);
}

std::string error_of(const std::vector<ParameterRule>& rules) {
  return test::message_of<ConfigError>([&] { plan(rules); });
}

TEST(ParameterRulesTest, WithoutRulesEverythingIsTrainedWithTheDefaults) {
  const auto all = plan({});
  EXPECT_EQ(all.trained().size(), all.parameters().size());
  EXPECT_EQ(find(all, "visual.trunk.blocks.0.mlp.weight").decay, 0.5);
  EXPECT_EQ(find(all, "visual.trunk.blocks.0.mlp.bias").decay, 0.0);
  for (const double rate : all.learning_rates(7)) EXPECT_EQ(rate, 0.1);
  EXPECT_EQ(all.base_learning_rate(7), 0.1);
}

TEST(ParameterRulesTest, ForEachSettingTheFirstRuleThatMatchesAndHasItDecides) {
  const auto all = plan(
      {{.match = "visual\\..*", .lr = 0.1}, {.match = ".*weight", .lr = 7, .decay = 2}, {.match = ".*", .decay = 3}});
  EXPECT_EQ(find(all, "visual.trunk.blocks.0.mlp.weight").lr_multiplier, 0.1);
  EXPECT_EQ(find(all, "visual.trunk.blocks.0.mlp.weight").decay, 1.0);
  EXPECT_EQ(find(all, "text.transformer.resblocks.0.mlp.weight").lr_multiplier, 7);
  EXPECT_EQ(find(all, "text.transformer.resblocks.0.mlp.bias").lr_multiplier, 1);
  EXPECT_EQ(find(all, "text.transformer.resblocks.0.mlp.bias").decay, 0) << "a multiplier doesn't make it decay";
}

TEST(ParameterRulesTest, FreezingHasExceptionsInEarlierRules) {
  const auto all = plan({{.match = "visual\\.trunk\\.blocks\\.2\\..*", .freeze = false},
                         {.match = "visual\\.trunk\\.blocks\\.1\\..*", .unlock_at = 5},
                         {.match = "visual\\..*", .freeze = true}});
  EXPECT_TRUE(find(all, "visual.trunk.blocks.2.mlp.bias").trained);
  EXPECT_TRUE(find(all, "visual.trunk.blocks.1.mlp.bias").trained);
  EXPECT_FALSE(find(all, "visual.trunk.blocks.0.mlp.bias").trained);
  EXPECT_FALSE(find(all, "visual.trunk.pos_embed").trained);
  EXPECT_TRUE(find(all, "logit_scale").trained);
  EXPECT_EQ(all.trained().size(), 12U);
}

TEST(ParameterRulesTest, AParameterThatNeedsNoGradientIsLocked) {
  auto parameters = model();
  parameters[0].second.requires_grad_(false);
  const auto all = resolve(parameters, {}, defaults());
  EXPECT_FALSE(find(all, "logit_scale").trained);
  EXPECT_EQ(all.trained().size(), parameters.size() - 1);
}

TEST(ParameterRulesTest, RatesFollowScheduleMultiplierAndUnlockStep) {
  const ScheduleOptions own{.schedule = "linear", .warmup_steps = 4};
  const auto all =
      plan({{.match = "logit_scale", .lr = 2, .schedule = own}, {.match = "visual.*", .lr = 0.5, .unlock_at = 10}});
  const auto early = all.learning_rates(0), late = all.learning_rates(10);
  EXPECT_DOUBLE_EQ(early[0], 2 * 0.1 * 0.25);
  EXPECT_EQ(early[1], 0.0);
  EXPECT_DOUBLE_EQ(late[1], 0.05);
  EXPECT_DOUBLE_EQ(late.back(), 0.1);
  EXPECT_EQ(all.unlock_steps(), std::vector<int64_t>{10});
  EXPECT_EQ(all.unlocked(9).size(), 8U);
  EXPECT_EQ(all.unlocked(10).size(), all.trained().size());
  EXPECT_FALSE(all.settings()[0].own_step);
  EXPECT_TRUE(all.settings()[1].own_step);
}

TEST(ParameterRulesTest, DecayThatFollowsTheScheduleOnlyDoesNotDependOnTheRate) {
  auto options = defaults();
  options.convention = DecayConvention::schedule_only;
  options.schedule.schedule = "cosine";
  const std::vector<ParameterRule> rules = {{.match = "visual.*", .lr = 0.01}};
  for (const double lr : {0.1, 1e-3}) {
    options.lr = lr;
    const auto all = resolve(model(), rules, options);
    const auto settings = all.settings();
    const auto rates = all.learning_rates(50);
    for (size_t i = 0; i < settings.size(); ++i) {
      const bool decays = settings[i].decay > 0;
      EXPECT_NEAR(rates[i] * settings[i].decay, decays ? 0.5 * 0.5 : 0.0, 1e-15) << all.trained()[i].first;
    }
  }
}

TEST(ParameterRulesTest, LockedValuesKeepTheirBitsAndOthersMove) {
  const auto parameters = model();
  const auto all = resolve(parameters, {{.match = "visual.*", .freeze = true}}, defaults());
  AdamW optimizer(all.trained(), {}, all.settings());
  for (int64_t step = 0; step < 3; ++step) {
    for (auto [name, parameter] : parameters) parameter.mutable_grad() = at::ones_like(parameter);
    optimizer.step(all.learning_rates(step));
  }
  for (const auto& [name, parameter] : parameters) {
    EXPECT_EQ(test::same_bytes(parameter.detach(), at::ones_like(parameter)), name.starts_with("visual")) << name;
  }
}

TEST(ParameterRulesTest, APartOfThePlanKeepsTheSettings) {
  const auto all = plan({{.match = "text.*", .lr = 3}, {.match = "logit_scale", .freeze = true}});
  const auto trained = all.trained();
  const auto part = all.only({trained.back(), trained.front()});
  EXPECT_EQ(part.trained()[0].first, "text.ln_final.weight");
  EXPECT_DOUBLE_EQ(part.learning_rates(0)[0], 0.1 * 3);
  EXPECT_DOUBLE_EQ(part.learning_rates(0)[1], 0.1);
  EXPECT_EQ(part.settings()[0].decay, 0);
  EXPECT_THROW(all.only({{"logit_scale", at::ones({})}}), c10::Error);
}

TEST(ParameterRulesTest, ARuleThatMatchesNothingNamesTheNearestParameters) {
  EXPECT_EQ(error_of({{.match = "visual\\.trunk\\.bloks\\.2\\..*", .lr = 2}}),
            "[parameter rules] rule 1 (visual\\.trunk\\.bloks\\.2\\..*): matches no parameter; the nearest are "
            "visual.trunk.blocks.2.mlp.weight, visual.trunk.blocks.2.mlp.bias, visual.trunk.blocks.0.mlp.weight");
  EXPECT_NE(error_of({{.match = "logit", .lr = 2}}).find("the nearest are logit_scale"), std::string::npos)
      << "the whole name must match";
}

TEST(ParameterRulesTest, EveryProblemIsReported) {
  const auto message = error_of({{.match = ".*"},
                                 {.match = ".*", .lr = 0},
                                 {.match = ".*", .decay = -1},
                                 {.match = ".*", .unlock_at = 100},
                                 {.match = ".*", .lr = 2, .freeze = true},
                                 {.match = "(", .lr = 2},
                                 {.match = ".*", .schedule = ScheduleOptions{.schedule = "cosin"}},
                                 {.match = std::string(1000, 'a'), .lr = 2}});
  for (const auto* part : {"rule 1 (.*): sets nothing; expected lr, decay, freeze, unlock_at or schedule",
                           "rule 2 (.*): lr must be above 0, but is 0 (freeze locks a parameter)",
                           "rule 3 (.*): decay must be at least 0, but is -1",
                           "rule 4 (.*): unlock_at must be at least 0 and below 100 (the steps of the run), but is 100",
                           "rule 5 (.*): freezes what it has other settings for",
                           "rule 6 ((): is no regular expression: ", "rule 7 (.*): [schedule] expected constant",
                           "the regular expression is too long"}) {
    EXPECT_NE(message.find(part), std::string::npos) << part << " in " << message;
  }
}

TEST(ParameterRulesTest, ARunThatTrainsNothingIsAnError) {
  EXPECT_EQ(error_of({{.match = ".*", .freeze = true}}),
            "[parameter rules] nothing is trained: every parameter is locked");
}

TEST(ParameterRulesTest, AnUnknownConventionIsAnError) {
  EXPECT_EQ(decay_convention("schedule_only"), DecayConvention::schedule_only);
  EXPECT_EQ(test::message_of<ConfigError>([] { decay_convention("both"); }),
            "[decay_convention] expected coupled or schedule_only, found both");
}

TEST(PlanTableTest, BlocksOfEqualSettingsAreOneRow) {
  const auto all = plan({{.match = "visual\\.trunk\\.blocks\\.2\\..*", .lr = 0.1, .unlock_at = 40},
                         {.match = "visual.*", .freeze = true}});
  EXPECT_EQ(to_text(all.rows()),
            "logit_scale                        1 values  lr 0.1, constant\n"
            "visual.trunk.pos_embed             8 values  locked\n"
            "visual.trunk.blocks.0-1.*         24 values  locked\n"
            "visual.trunk.blocks.2.*           12 values  lr 0.01, constant, decay 0.5 on 8, from step 40\n"
            "text.transformer.resblocks.0-2.*  36 values  lr 0.1, constant, decay 0.5 on 24\n"
            "text.ln_final.*                    2 values  lr 0.1, constant\n");
}

TEST(PlanTableTest, GroupsMayBeTheCallers) {
  const auto rows = plan({{.match = "text.*bias", .lr = 2}}).rows([](const std::string& name) {
    return name.starts_with("text") ? std::string("text") : std::string("rest");
  });
  ASSERT_EQ(rows.size(), 3U);
  EXPECT_EQ(rows[0].group, "rest.*");
  EXPECT_EQ(rows[1].group, "text.*");
  EXPECT_EQ(rows[1].values, 26);
  EXPECT_EQ(rows[1].tensors, 4);
  EXPECT_DOUBLE_EQ(rows[2].lr, 0.2);
  EXPECT_EQ(rows[2].values, 12);
}

}  // namespace
}  // namespace contrastive::optim
