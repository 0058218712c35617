#include "train/training_plan.h"

#include <algorithm>
#include <optional>
#include <regex>
#include <set>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/optim/adafactor.h"
#include "contrastive/optim/adamw.h"
#include "contrastive/optim/duration.h"
#include "contrastive/optim/lion.h"

namespace contrastive::train::detail {
namespace {

optim::DurationScale scale_of(const RunLength& length) {
  return {.batch_size = length.batch_size,
          .samples_per_epoch = length.samples_per_epoch,
          .total_steps = length.total_steps};
}

int64_t steps_of(const std::string& key, const std::string& duration, const RunLength& length) {
  try {
    return optim::Duration::parse(duration).steps(scale_of(length));
  } catch (const ConfigError& error) {
    throw ConfigError(fmt::format("{}: {}", key, error.what()));
  }
}

optim::ScheduleOptions schedule_options(const OptimizerOptions& options, const RunLength& length) {
  optim::ScheduleOptions result;
  result.schedule = options.schedule;
  result.warmup_steps = options.warmup ? steps_of("optim.warmup", *options.warmup, length) : options.warmup_steps;
  result.warmup_from = options.warmup_from;
  result.cooldown_steps =
      options.cooldown ? steps_of("optim.cooldown", *options.cooldown, length) : options.cooldown_steps;
  result.cooldown_power = options.cooldown_power;
  result.cooldown_end_lr = options.cooldown_end_lr;
  result.end = options.end;
  result.power = options.power;
  result.timescale = options.timescale;
  return result;
}

/// The model's parameters under their names in checkpoints.
NamedTensors parameters_of(const models::ClipModel& model) {
  std::set<const void*> parameters;
  for (const auto& parameter : model->parameters()) parameters.insert(parameter.unsafeGetTensorImpl());
  auto tensors = model->state();
  std::erase_if(tensors, [&](const auto& entry) { return !parameters.contains(entry.second.unsafeGetTensorImpl()); });
  return tensors;
}

std::string escaped(const std::string& name) {
  std::string result;
  for (const char c : name) {
    if (c == '.') result += '\\';
    result += c;
  }
  return result;
}

models::LockOptions lock_options(const TowerOptions& options) {
  return {.unlocked_groups = options.unlocked_groups, .head = options.lock_head};
}

/// A tower with its settings in the config.
struct ConfiguredTower {
  const char* key;
  bool is_locked;
  const TowerOptions& options;
  models::TowerImpl& tower;
};

std::vector<ConfiguredTower> towers_of(const RunOptions& options, models::ClipModel& model) {
  return {{"image", options.locks_image(), options.image, *model->visual},
          {"text", options.locks_text(), options.text, *model->text}};
}

std::optional<int64_t> unlock_step(const ConfiguredTower& tower, const RunLength& length) {
  if (!tower.is_locked || !tower.options.unlock_at) return std::nullopt;
  const auto key = fmt::format("{}.unlock_at", tower.key);
  const auto step = steps_of(key, *tower.options.unlock_at, length);
  if (step < length.total_steps) return step;
  throw ConfigError(fmt::format("{}: step {} is not before the end of the run, {}", key, step, length.total_steps));
}

/// A rule for each parameter that is locked at this moment: it is trained from a step on.
void add_unlocking_rules(const NamedTensors& parameters, const std::set<const void*>& of_tower, int64_t step,
                         std::vector<optim::ParameterRule>& rules) {
  for (const auto& [name, parameter] : parameters) {
    if (parameter.requires_grad() || !of_tower.contains(parameter.unsafeGetTensorImpl())) continue;
    optim::ParameterRule rule{.match = escaped(name)};
    rule.unlock_at = step;
    rules.push_back(std::move(rule));
  }
}

std::set<const void*> parameter_set(const torch::nn::Module& module) {
  std::set<const void*> result;
  for (const auto& parameter : module.parameters()) result.insert(parameter.unsafeGetTensorImpl());
  return result;
}

void set_lock(const ConfiguredTower& tower) {
  try {
    tower.tower.lock(lock_options(tower.options));
  } catch (const ConfigError& error) {
    throw ConfigError(fmt::format("{}.unlocked_groups: {}", tower.key, error.what()));
  }
}

std::vector<optim::ParameterRule> rules_of(const OptimizerOptions& options, const RunLength& length) {
  std::vector<optim::ParameterRule> rules;
  for (const auto& rule : options.rules) {
    optim::ParameterRule result{.match = rule.match, .lr = rule.lr, .decay = rule.decay};
    if (rule.freeze) result.freeze = true;
    if (rule.unlock_at) result.unlock_at = steps_of("optim.rules: unlock_at", *rule.unlock_at, length);
    rules.push_back(std::move(result));
  }
  return rules;
}

/// Throws: ConfigError if a rule is about locked parameters only.
void check_rules_have_effect(const OptimizerOptions& options, const optim::ParameterPlan& plan) {
  for (const auto& rule : options.rules) {
    if (rule.freeze) continue;
    const std::regex match(rule.match);
    const auto& all = plan.parameters();
    const bool has_effect = std::any_of(all.begin(), all.end(), [&](const auto& parameter) {
      return parameter.trained && std::regex_match(parameter.name, match);
    });
    if (has_effect) continue;
    throw ConfigError(fmt::format("optim.rules: {} matches parameters that are locked anyway", rule.match));
  }
}

/// Whether rules freeze all of a tower before its head.
bool is_frozen_by_rules(const models::TowerImpl& tower, const optim::ParameterPlan& plan) {
  std::set<const void*> trained;
  for (const auto& parameter : plan.parameters()) {
    if (parameter.trained) trained.insert(parameter.tensor.unsafeGetTensorImpl());
  }
  bool has_parameters = false;
  for (const auto& item : tower.named_parameters()) {
    if (tower.layer_group(item.key()) == models::kHeadGroup) continue;
    has_parameters = true;
    if (trained.contains(item.value().unsafeGetTensorImpl())) return false;
  }
  return has_parameters;
}

}  // namespace

optim::ParameterPlan make_plan(const RunOptions& options, const RunLength& length, models::ClipModel& model) {
  const auto parameters = parameters_of(model);
  auto rules = rules_of(options.optim, length);
  for (const auto& tower : towers_of(options, model)) {
    if (!tower.is_locked) continue;
    set_lock(tower);
    const auto unlock_at = unlock_step(tower, length);
    if (!unlock_at) continue;
    add_unlocking_rules(parameters, parameter_set(tower.tower), *unlock_at, rules);
    tower.tower.unlock();
  }
  optim::PlanDefaults defaults;
  defaults.lr = options.optim.lr;
  defaults.schedule = schedule_options(options.optim, length);
  defaults.total_steps = length.total_steps;
  defaults.weight_decay = options.optim.weight_decay;
  defaults.convention = optim::decay_convention(options.optim.decay_convention);
  defaults.decays = optim::decay_rule(options.optim.decay_rule);
  auto plan = optim::resolve(parameters, rules, defaults);
  check_rules_have_effect(options.optim, plan);
  return plan;
}

void apply_locks(const RunOptions& options, const RunLength& length, const optim::ParameterPlan& plan, int64_t step,
                 models::ClipModel& model) {
  for (const auto& tower : towers_of(options, model)) {
    const auto unlock_at = unlock_step(tower, length);
    if (tower.is_locked && (!unlock_at || step < *unlock_at)) {
      set_lock(tower);
    } else if (is_frozen_by_rules(tower.tower, plan)) {
      tower.tower.lock({});
    } else {
      tower.tower.unlock();
    }
  }
  for (const auto& parameter : plan.parameters()) {
    auto tensor = parameter.tensor;
    tensor.set_requires_grad(parameter.trained && step >= parameter.unlock_at);
  }
  model->train(model->is_training());  // what has nothing to learn goes into eval mode
}

std::set<std::string> constant_weights(const RunOptions& options, models::ClipModel& model) {
  std::set<const void*> constant;
  for (const auto& tower : towers_of(options, model)) {
    if (!tower.tower.features_are_locked() || tower.options.unlock_at) continue;
    const auto add = [&](const auto& item) {
      if (tower.tower.layer_group(item.key()) != models::kHeadGroup)
        constant.insert(item.value().unsafeGetTensorImpl());
    };
    for (const auto& item : tower.tower.named_parameters()) add(item);
    for (const auto& item : tower.tower.named_buffers()) add(item);
  }
  std::set<std::string> names;
  for (const auto& [name, tensor] : model->state()) {
    if (constant.contains(tensor.unsafeGetTensorImpl())) names.insert(name);
  }
  return names;
}

std::unique_ptr<optim::Optimizer> make_optimizer(const RunOptions& options, const models::ModelConfig& config,
                                                 const optim::ParameterPlan& plan) {
  const auto& o = options.optim;
  if (o.name == "lion") {
    return std::make_unique<optim::Lion>(plan.trained(), optim::LionOptions{.beta1 = o.beta1, .beta2 = o.beta2},
                                         plan.settings());
  }
  if (o.name == "adafactor") {
    optim::AdafactorOptions adafactor;
    adafactor.beta2 = o.adafactor.beta2_cap;
    adafactor.momentum = o.adafactor.momentum;
    adafactor.bf16_momentum = o.adafactor.momentum_dtype == "bf16";
    adafactor.clipping_threshold = o.adafactor.clipping_threshold;
    const auto image_heads = config.vision_cfg.heads(), text_heads = config.text_cfg.heads;
    adafactor.layout = [=](const std::string& name, at::IntArrayRef shape) {
      return optim::adafactor_layout(name, shape, image_heads, text_heads);
    };
    return std::make_unique<optim::Adafactor>(plan.trained(), adafactor, plan.settings());
  }
  const optim::AdamWOptions adamw{.beta1 = o.beta1, .beta2 = o.beta2, .eps = o.eps, .weight_decay = o.weight_decay};
  return std::make_unique<optim::AdamW>(plan.trained(), adamw, plan.settings());
}

std::string plan_text(const RunOptions& options, const optim::ParameterPlan& plan) {
  auto heading = options.lock.empty() ? std::string() : fmt::format("lock: {}\n", options.lock);
  if (!options.image.cache.empty()) {
    heading +=
        fmt::format("visual before its projection: locked, not in memory, embeddings from {}\n", options.image.cache);
  }
  return heading + optim::to_text(plan.rows());
}

}  // namespace contrastive::train::detail
