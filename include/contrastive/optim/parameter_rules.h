#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/core/lazy_tensor.h"
#include "contrastive/optim/decay_rules.h"
#include "contrastive/optim/optimizer.h"
#include "contrastive/optim/schedule.h"

namespace contrastive::optim {

/// Settings for the parameters whose whole name a regular expression (ECMAScript) matches. For each setting, the first
/// rule that matches and has it decides. How a parameter is trained (freeze, unlock_at, schedule) is decided as a
/// whole: a rule that has one of the latter two says that it is not frozen. Source: the lists schedule, lr_mults and
/// wd_mults of big_vision/optax.py.
struct ParameterRule {
  std::string match;
  std::optional<double> lr = {};          ///< multiplier of the learning rate, above 0
  std::optional<double> decay = {};       ///< multiplier of the weight decay that the decay rule gives
  std::optional<bool> freeze = {};        ///< locked for the whole run
  std::optional<int64_t> unlock_at = {};  ///< the step, from 0, from which it is trained; until then its rate is 0
  std::optional<ScheduleOptions> schedule = {};  ///< instead of the run's
};

/// What a decay coefficient is multiplied by in step t.
enum class DecayConvention {
  coupled,       ///< by the learning rate lr(t), as in PyTorch's AdamW
  schedule_only  ///< by lr(t) over the parameter's base rate, as in big_vision: 1e-4 there is 0.1 above at lr 1e-3
};

/// "coupled" or "schedule_only". Throws: ConfigError.
CONTRASTIVE_API DecayConvention decay_convention(const std::string& name);

/// What holds where no rule says otherwise.
struct PlanDefaults {
  double lr = 5e-4;
  ScheduleOptions schedule = {};
  int64_t total_steps = 0;
  double weight_decay = 0;
  DecayConvention convention = DecayConvention::coupled;
  DecayRule decays = open_clip_decays;
};

/// What was decided for one parameter.
struct PlannedParameter {
  std::string name;
  torch::Tensor tensor;
  bool trained = false;
  double lr_multiplier = 1;
  double decay = 0;     ///< as an Optimizer takes it, see ParameterSettings
  size_t schedule = 0;  ///< into the plan's schedules
  int64_t unlock_at = 0;
};

/// A row of the table of what is trained how: neighbours with the same settings.
struct PlanRow {
  std::string group;  ///< "visual.trunk.blocks.0-11.*"
  bool trained = false;
  int64_t tensors = 0, values = 0;
  double lr = 0;     ///< base rate times multiplier
  double decay = 0;  ///< of those values that decay
  int64_t decayed_values = 0;
  int64_t unlock_at = 0;
  std::string schedule;  ///< its curve
};

/// How every parameter is trained.
class CONTRASTIVE_API ParameterPlan {
 public:
  /// Every parameter, locked ones included, in the order given.
  const std::vector<PlannedParameter>& parameters() const { return parameters_; }

  /// Those that are trained at some time.
  NamedTensors trained() const;

  /// Of trained(), in order, as an Optimizer takes it.
  std::vector<ParameterSettings> settings() const;

  /// Of trained(), in order, at a step from 0.
  std::vector<double> learning_rates(int64_t step) const;

  /// The part of the plan for some of trained(), in their order; for shards of the optimiser's state.
  /// Throws: Error if a name is not among trained().
  ParameterPlan only(const NamedTensors& some) const;

  /// Those of trained() whose time has come at a step. Until then a parameter should require no gradient, which leaves
  /// its moments at their start.
  NamedTensors unlocked(int64_t step) const;

  /// The steps above 0 at which a parameter unlocks, ascending.
  std::vector<int64_t> unlock_steps() const;

  /// The learning rate without multipliers and rules, for logs.
  double base_learning_rate(int64_t step) const { return schedules_.front().at(step); }

  /// The table. Args: group_of, the group that a name belongs to; a number in it makes neighbours such as blocks 0 to
  /// 11 one row. Empty: the name up to its first number, or without weight or bias.
  std::vector<PlanRow> rows(const std::function<std::string(const std::string& name)>& group_of = {}) const;

 private:
  friend CONTRASTIVE_API ParameterPlan resolve(const NamedTensors&, const std::vector<ParameterRule>&,
                                               const PlanDefaults&);

  std::vector<PlannedParameter> parameters_;
  std::vector<Schedule> schedules_;  ///< the run's, then those of rules
};

/// Applies rules to parameters under their open_clip names. A parameter that requires no gradient is locked whatever
/// the rules say.
/// Throws: ConfigError with every problem, a line each: a regular expression that is invalid or matches no parameter
/// (the nearest names are given), a rule without settings, settings out of range or that contradict each other, a run
/// in which nothing is trained.
CONTRASTIVE_API ParameterPlan resolve(const NamedTensors& parameters, const std::vector<ParameterRule>& rules,
                                      const PlanDefaults& defaults);

/// The rows as aligned text, a line each.
CONTRASTIVE_API std::string to_text(const std::vector<PlanRow>& rows);

}  // namespace contrastive::optim
