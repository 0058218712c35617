#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>

#include "contrastive/models/clip_model.h"
#include "contrastive/optim/optimizer.h"
#include "contrastive/optim/parameter_rules.h"
#include "contrastive/train/run_options.h"

/// What of a model is trained, when and how.
namespace contrastive::train::detail {

/// How long a run is, for durations.
struct RunLength {
  int64_t total_steps = 0;
  int64_t batch_size = 0;
  int64_t samples_per_epoch = 0;
};

/// Locks what is never trained (letters, groups, rules) and plans the rest.
/// Throws: ConfigError with the key and what is wrong with it.
optim::ParameterPlan make_plan(const RunOptions& options, const RunLength& length, models::ClipModel& model);

/// Makes the model's parameters require a gradient, or not, as it should be from `step` on.
void apply_locks(const RunOptions& options, const RunLength& length, const optim::ParameterPlan& plan, int64_t step,
                 models::ClipModel& model);

/// Names of the weights that stay as they are for the whole run: those of towers that are never unlocked.
std::set<std::string> constant_weights(const RunOptions& options, models::ClipModel& model);

/// An optimiser of some of the plan's parameters.
std::unique_ptr<optim::Optimizer> make_optimizer(const RunOptions& options, const models::ModelConfig& config,
                                                 const optim::ParameterPlan& plan);

/// The plan as a table for the log and the run's folder.
std::string plan_text(const RunOptions& options, const optim::ParameterPlan& plan);

}  // namespace contrastive::train::detail
