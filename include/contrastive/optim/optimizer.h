#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/core/lazy_tensor.h"
#include "contrastive/models/precision.h"
#include "contrastive/optim/decay_rules.h"

namespace contrastive::optim {

/// What an optimiser must know of one parameter, beside its learning rate.
struct ParameterSettings {
  double decay = 0;  ///< a step at learning rate lr takes lr * decay * value off each value

  /// The parameter counts steps of its own: those in which it had a gradient. For one that is trained from a later step
  /// on than the others; its moments then start as theirs did.
  bool own_step = false;
};

/// Updates named parameters from their gradients. The parameters (floating point, one dtype, one device) are changed
/// in place; they are shared with whoever made them. No call waits for a device, load_state excepted.
class CONTRASTIVE_API Optimizer {
 public:
  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  /// As in a config: "adamw", "adafactor", "lion".
  const std::string& name() const { return name_; }

  const NamedTensors& parameters() const { return parameters_; }

  /// One step with the gradients there are; a parameter without gradient, and what is kept of it, is left as it is. At
  /// learning rate 0 a parameter keeps its values, while its moments follow the gradient.
  /// Args: lrs, one for each of parameters(), in order; grad_divisor, a scalar that every gradient is divided by on the
  /// way (see clip_divisor). The stored gradients' values afterwards are unspecified.
  /// Throws: Error unless there is one learning rate for each parameter.
  void step(std::span<const double> lrs, const std::optional<torch::Tensor>& grad_divisor = {});

  /// The same with one learning rate for all.
  void step(double lr, const std::optional<torch::Tensor>& grad_divisor = {});

  /// For an optimiser that can renew the copies of parameters in the pass that changes them; others leave them to those
  /// who use them.
  virtual void renew_copies(const std::vector<std::pair<torch::Tensor, models::ComputeCopy*>>& /*copies*/) {}

  /// Drops the gradients, so that the next backward pass writes instead of adding.
  void zero_grad();

  /// What is kept from step to step: "<kind>.<name>" for each parameter, and "step" ([], fp32: steps done; likewise
  /// "step.<name>" of a parameter with its own count). Shared storage.
  NamedTensors state() const;

  /// Copies a state in. Throws: CheckpointError that lists every missing, unexpected and mis-shaped tensor.
  void load_state(const NamedTensors& tensors);

 protected:
  /// A parameter that a step changes.
  struct Update {
    size_t index = 0;  ///< into parameters()
    torch::Tensor parameter, gradient;
    double lr = 0;
    double decay = 0;
  };

  /// Throws: Error if there are no parameters, they differ in dtype or device, or are not as many as `settings`.
  Optimizer(std::string name, NamedTensors parameters, std::vector<ParameterSettings> settings);

  /// Changes these parameters and what is kept of them; their steps are already counted. At least one.
  virtual void update(const std::vector<Update>& updates, const std::optional<torch::Tensor>& grad_divisor) = 0;

  /// What is kept of the parameters: "<kind>.<name>".
  virtual NamedTensors moments() const = 0;

  /// The updates in pieces of bounded size that share one step count, for optimisers that hold temporaries.
  std::vector<std::span<const Update>> chunks(const std::vector<Update>& updates) const;

  /// The gradients of a piece, divided in place.
  static std::vector<torch::Tensor> divided_gradients(std::span<const Update> updates,
                                                      const std::optional<torch::Tensor>& grad_divisor);

  /// value <- value - lr * decay * value - lr * direction. Overwrites the directions.
  static void descend(std::span<const Update> updates, std::vector<torch::Tensor>& directions);

  /// The steps that parameter `index` has done, this one included. One tensor for all that don't count on their own.
  const torch::Tensor& step_of(size_t index) const;

 private:
  void count_step(const std::vector<Update>& updates);

  std::string name_;
  NamedTensors parameters_;
  std::vector<ParameterSettings> settings_;
  torch::Tensor step_;
  std::map<size_t, torch::Tensor> own_steps_;  ///< by index into parameters_
};

/// The settings that a decay rule and one coefficient give.
CONTRASTIVE_API std::vector<ParameterSettings> settings_of(const NamedTensors& parameters, double decay,
                                                           const DecayRule& decays);

}  // namespace contrastive::optim
