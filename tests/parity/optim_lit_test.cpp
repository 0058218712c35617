#include <algorithm>
#include <cmath>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "contrastive/core/config_node.h"
#include "contrastive/core/safetensors.h"
#include "contrastive/optim/adafactor.h"
#include "contrastive/optim/adamw.h"
#include "contrastive/optim/duration.h"
#include "contrastive/optim/gradients.h"
#include "contrastive/optim/lion.h"
#include "contrastive/optim/parameter_rules.h"
#include "contrastive/optim/schedule.h"

#include "tests/support/paths.h"
#include "tests/support/tensors.h"

/// Against big_vision's optimisers and schedules as they run on optax. Arrays keep their JAX names and shapes.
namespace contrastive {
namespace {

constexpr test::Tolerance kTolerance{2e-6, 0};
constexpr test::Tolerance kEagerTolerance{5e-4, 0};  ///< of a momentum whose product is rounded to bf16
constexpr double kShareOfFlips = 2e-3;  ///< values whose bf16 momentum may round the other way, in one tensor
constexpr test::Tolerance kScheduleTolerance{2e-7, 1e-6};

double number_or(const ConfigNode& map, const std::string& key, double standard) {
  return map.find(key) == nullptr ? standard : test::number_at(map, key);
}

bool is_null(const ConfigNode& map, const std::string& key) {
  const auto* node = map.find(key);
  return node != nullptr && node->kind == ConfigNode::Kind::null;
}

/// A duration that may stand under PREFIX_steps, _examples, _epochs or _percent.
int64_t duration_or_0(const ConfigNode& arguments, const std::string& prefix, const optim::DurationScale& scale) {
  const auto in = [&](const std::string& key, double factor, const std::string& unit) {
    return optim::Duration::parse(std::to_string(factor * test::number_at(arguments, key)) + unit).steps(scale);
  };
  if (arguments.find(prefix + "_steps")) return static_cast<int64_t>(test::number_at(arguments, prefix + "_steps"));
  if (arguments.find(prefix + "_examples")) return in(prefix + "_examples", 1, " examples");
  if (arguments.find(prefix + "_epochs")) return in(prefix + "_epochs", 1, " epochs");
  return arguments.find(prefix + "_percent") ? in(prefix + "_percent", 100, " %") : 0;
}

/// The keyword arguments of create_learning_rate_schedule.
optim::ScheduleOptions schedule_options(const ConfigNode& arguments, const optim::DurationScale& scale) {
  optim::ScheduleOptions options;
  options.warmup_from = "zero";
  options.warmup_steps = duration_or_0(arguments, "warmup", scale);
  options.cooldown_steps = duration_or_0(arguments, "cooldown", scale);
  if (arguments.find("decay_type")) options.schedule = arguments.find("decay_type")->scalar;
  options.end = number_or(arguments, "end", number_or(arguments, "linear_end", 0));
  options.power = number_or(arguments, "power", 1);
  options.timescale = number_or(arguments, "timescale", options.timescale);
  options.shift = number_or(arguments, "shift", 0);
  if (arguments.find("steps")) {
    for (const auto step : test::numbers_at(arguments, "steps")) {
      options.stair_steps.push_back(static_cast<int64_t>(step));
    }
    options.stair_multipliers = test::numbers_at(arguments, "mults");
  }
  return options;
}

class OptimLitParityTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!test::lit_fixtures_dir()) GTEST_SKIP() << "no parity fixtures (CONTRASTIVE_FIXTURES_LIT)";
  }
  static std::filesystem::path file(const std::string& name) { return *test::lit_fixtures_dir() / name; }
  static ConfigNode settings() { return *load_config(file("config.json")).find("cases")->find("optim"); }
};

void print_difference(const std::string& name) {
  std::cout << name << ": " << test::largest_difference().take() << "\n";
}

TEST_F(OptimLitParityTest, SchedulesEqualTheReference) {
  const auto rows = load_config(file("schedules.json"));
  ASSERT_FALSE(rows.items.empty());
  for (const auto& row : rows.items) {
    const auto& arguments = *row.find("kw");
    const optim::DurationScale scale{.batch_size = static_cast<int64_t>(test::number_at(row, "batch_size")),
                                     .samples_per_epoch = static_cast<int64_t>(test::number_at(row, "data_size")),
                                     .total_steps = static_cast<int64_t>(test::number_at(row, "total_steps"))};
    const optim::Schedule schedule(schedule_options(arguments, scale), test::number_at(row, "base"), scale.total_steps);
    std::vector<double> actual;
    for (const auto step : test::numbers_at(row, "steps")) actual.push_back(schedule.at(static_cast<int64_t>(step)));
    EXPECT_TRUE(test::tensors_near("schedule " + std::to_string(&row - rows.items.data()),
                                   at::tensor(actual, at::kDouble),
                                   at::tensor(test::numbers_at(row, "values"), at::kDouble), kScheduleTolerance));
  }
  print_difference("schedules");
}

/// The plan of one case; `settings` are big_vision's config.
struct Case {
  std::string name;
  const ConfigNode& settings;
  int64_t steps = 0;

  bool is_optax_adamw() const { return settings.find("optax_name") == nullptr; }

  optim::PlanDefaults defaults() const {
    optim::PlanDefaults result;
    result.lr = test::number_at(settings, "lr");
    result.decays = [](const std::string& array, const torch::Tensor&) { return array.ends_with("/kernel"); };
    if (is_optax_adamw()) {
      result.schedule.schedule = "constant";
      result.total_steps = steps;
      result.weight_decay = test::number_at(settings, "weight_decay");
      return result;
    }
    result.total_steps = static_cast<int64_t>(test::number_at(settings, "total_steps"));
    result.weight_decay = test::number_at(settings, "wd");
    result.convention = optim::DecayConvention::schedule_only;
    const auto& schedule = *settings.find("schedule");
    if (schedule.kind == ConfigNode::Kind::map) result.schedule = schedule_options(schedule, {});
    if (settings.find("wd_mults")) result.decays = optim::decay_rule("all");
    return result;
  }

  std::vector<optim::ParameterRule> rules() const {
    std::vector<optim::ParameterRule> rules;
    if (is_optax_adamw()) return rules;
    for (const auto& item : settings.find("schedule")->items) {
      const bool frozen = item.items[1].kind == ConfigNode::Kind::null;
      rules.push_back({.match = item.items[0].scalar});
      if (frozen) rules.back().freeze = true;
      if (!frozen) rules.back().schedule = schedule_options(item.items[1], {});
    }
    if (const auto* multipliers = settings.find("lr_mults")) {
      for (const auto& item : multipliers->items) {
        rules.push_back({.match = item.items[0].scalar, .lr = std::stod(item.items[1].scalar)});
      }
    }
    if (const auto* multipliers = settings.find("wd_mults")) {
      for (const auto& item : multipliers->items) {
        rules.push_back({.match = item.items[0].scalar, .decay = std::stod(item.items[1].scalar)});
      }
      rules.push_back({.match = ".*", .decay = 0});  // what no multiplier matches doesn't decay
    }
    return rules;
  }
};

optim::AdamWOptions adam_options(const ConfigNode& arguments) {
  return {.beta1 = number_or(arguments, "b1", 0.9),
          .beta2 = number_or(arguments, "b2", 0.999),
          .eps = number_or(arguments, "eps", 1e-8)};
}

optim::AdafactorOptions adafactor_options(const ConfigNode& arguments) {
  optim::AdafactorOptions options;
  options.beta2 = number_or(arguments, "beta2_cap", options.beta2);
  if (is_null(arguments, "momentum")) options.momentum.reset();
  if (const auto* dtype = arguments.find("dtype_momentum")) options.bf16_momentum = dtype->scalar != "float32";
  if (arguments.find("clipping_threshold")) {
    options.clipping_threshold = test::number_at(arguments, "clipping_threshold");
  }
  return options;
}

std::unique_ptr<optim::Optimizer> make_optimizer(const Case& item, const optim::ParameterPlan& plan) {
  if (item.is_optax_adamw()) {
    return std::make_unique<optim::AdamW>(plan.trained(), adam_options(item.settings), plan.settings());
  }
  const auto& name = item.settings.find("optax_name")->scalar;
  const auto& arguments = *item.settings.find("optax");
  if (name == "scale_by_adam") {
    return std::make_unique<optim::AdamW>(plan.trained(), adam_options(arguments), plan.settings());
  }
  if (name == "scale_by_lion") {
    const optim::LionOptions options{.beta1 = number_or(arguments, "b1", 0.9),
                                     .beta2 = number_or(arguments, "b2", 0.99)};
    return std::make_unique<optim::Lion>(plan.trained(), options, plan.settings());
  }
  if (name != "big_vision.scale_by_adafactor") throw std::runtime_error("no optimiser for " + name);
  return std::make_unique<optim::Adafactor>(plan.trained(), adafactor_options(arguments), plan.settings());
}

NamedTensors start_values(const SafetensorsFile& inputs) {
  NamedTensors parameters;
  for (const auto& [name, value] : test::by_name(inputs.tensors(), "init/")) {
    parameters.emplace_back(name, value.clone().requires_grad_());
  }
  return parameters;
}

void set_gradients(const NamedTensors& parameters, const SafetensorsFile& inputs, int64_t step) {
  for (const auto& [name, parameter] : parameters) {
    auto leaf = parameter;
    leaf.mutable_grad() = inputs.tensor("grad/" + std::to_string(step) + "/" + name).clone();
  }
}

/// Whether almost all values are near: one that lies between two bf16 numbers may be rounded to the other.
bool is_near_but_for_flips(const torch::Tensor& actual, const torch::Tensor& expected) {
  const auto error = (actual.detach() - expected).abs();
  return (error > kTolerance.absolute).to(at::kDouble).mean().item<double>() <= kShareOfFlips &&
         error.max().item<double>() <= kEagerTolerance.absolute;
}

/// Runs a case and compares every parameter after every step with the tensors under `expected_name`.
void run_case(const Case& item, const SafetensorsFile& inputs, const SafetensorsFile& expected,
              const std::string& expected_name, test::Tolerance tolerance) {
  const auto parameters = start_values(inputs);
  const auto plan = optim::resolve(parameters, item.rules(), item.defaults());
  const auto optimizer = make_optimizer(item, plan);
  const auto* arguments = item.settings.find("optax");
  const bool may_flip = optimizer->name() == "adafactor" && adafactor_options(*arguments).bf16_momentum;
  const bool clips = item.settings.find("grad_clip_norm") != nullptr && !is_null(item.settings, "grad_clip_norm");
  for (int64_t step = 0; step < item.steps; ++step) {
    set_gradients(parameters, inputs, step);
    std::optional<torch::Tensor> divisor;
    if (clips) {
      divisor =
          optim::clip_divisor(optim::global_norm(plan.trained()), test::number_at(item.settings, "grad_clip_norm"));
    }
    optimizer->step(plan.learning_rates(step), divisor);
    for (const auto& planned : plan.parameters()) {
      const auto key = expected_name + "/" + std::to_string(step) + "/" + planned.name;
      const auto near = test::tensors_near(key, planned.tensor, expected.tensor(key), tolerance);
      EXPECT_TRUE(near || (may_flip && is_near_but_for_flips(planned.tensor, expected.tensor(key)))) << near.message();
      EXPECT_TRUE(planned.trained || test::same_bytes(planned.tensor, expected.tensor(key))) << key;
    }
  }
  print_difference(expected_name);
}

TEST_F(OptimLitParityTest, EveryOptimizerEqualsTheReferenceAtEveryStep) {
  const auto all = settings();
  const SafetensorsFile inputs(file(all.find("inputs")->scalar)), expected(file(all.find("expected")->scalar));
  const auto& optimizers = *all.find("optimizers");
  ASSERT_FALSE(optimizers.entries.empty());
  for (const auto& [name, place, value] : optimizers.entries) {
    run_case({name, value, static_cast<int64_t>(test::number_at(all, "steps"))}, inputs, expected, name, kTolerance);
  }
}

TEST_F(OptimLitParityTest, UncompiledAdafactorDiffersByItsRoundingOfTheMomentumOnly) {
  const auto all = settings();
  const SafetensorsFile inputs(file(all.find("inputs")->scalar)), expected(file(all.find("expected")->scalar));
  const auto* value = all.find("optimizers")->find("adafactor");
  ASSERT_NE(value, nullptr);
  run_case({"adafactor", *value, static_cast<int64_t>(test::number_at(all, "steps"))}, inputs, expected,
           "adafactor_eager", kEagerTolerance);
}

TEST_F(OptimLitParityTest, RatesOfEachCaseEqualTheReferenceSchedules) {
  const auto all = settings();
  for (const auto& [name, place, value] : all.find("optimizers")->entries) {
    if (value.find("schedule_values") == nullptr) continue;
    std::vector<const ConfigNode*> schedules;
    const auto& given = *value.find("schedule");
    if (given.kind == ConfigNode::Kind::map) schedules.push_back(&given);
    for (const auto& item : given.items) {
      if (item.items[1].kind == ConfigNode::Kind::map) schedules.push_back(&item.items[1]);
    }
    const auto& expected = value.find("schedule_values")->items;
    ASSERT_EQ(schedules.size(), expected.size()) << name;
    for (size_t i = 0; i < schedules.size(); ++i) {
      const optim::Schedule schedule(schedule_options(*schedules[i], {}), 1.0,
                                     static_cast<int64_t>(test::number_at(value, "total_steps")));
      for (size_t step = 0; step < expected[i].items.size(); ++step) {
        EXPECT_NEAR(schedule.at(static_cast<int64_t>(step)), std::stod(expected[i].items[step].scalar), 2e-7)
            << name << " schedule " << i << " step " << step;
      }
    }
  }
}

TEST_F(OptimLitParityTest, ClippedGradientsAndNormsEqualTheReference) {
  const auto all = settings();
  const SafetensorsFile inputs(file(all.find("inputs")->scalar)), expected(file(all.find("expected")->scalar));
  const auto norms = test::numbers_at(all, "grad_global_norms");
  const auto parameters = start_values(inputs);
  int compared = 0;
  for (size_t step = 0; step < norms.size(); ++step) {
    set_gradients(parameters, inputs, static_cast<int64_t>(step));
    const auto norm = optim::global_norm(parameters);
    EXPECT_TRUE(test::tensors_near("norm", norm, at::scalar_tensor(norms[step], at::kDouble), {0, 1e-6}));
    const auto divisor = optim::clip_divisor(norm, 1.0);
    for (const auto& [name, parameter] : parameters) {
      const auto key = "clip_norm1/" + std::to_string(step) + "/" + name;
      if (!expected.contains(key)) continue;
      EXPECT_TRUE(test::tensors_near(key, parameter.grad() / divisor, expected.tensor(key), kTolerance));
      ++compared;
    }
  }
  EXPECT_GT(compared, 0);
  print_difference("clip_norm1");
}

}  // namespace
}  // namespace contrastive
