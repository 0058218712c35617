#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/core/safetensors.h"

namespace contrastive::optim {

/// Whether weight decay applies to a parameter.
using DecayRule = std::function<bool(const std::string& name, const torch::Tensor& parameter)>;

/// The rule of open_clip 3.x, with which the published models were trained: at least two dimensions, and none of "bn",
/// "ln", "bias", "logit_scale" in the name. Positional embeddings decay.
CONTRASTIVE_API bool open_clip_decays(const std::string& name, const torch::Tensor& parameter);

/// The rule of open_clip's main branch: at least two dimensions, and not a positional embedding of a transformer. (That
/// of a ResNet's attention pool decays.)
CONTRASTIVE_API bool matrix_decays(const std::string& name, const torch::Tensor& parameter);

/// The rule of a name: "open_clip_3" is open_clip_decays, "open_clip_main" is matrix_decays. Throws: ConfigError.
CONTRASTIVE_API DecayRule decay_rule(const std::string& name);

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.98;
  double eps = 1e-6;
  double weight_decay = 0.2;
};

/// Adam with decoupled weight decay over named parameters, one fused call per decay group.
/// The parameters (floating point, one dtype, one device) are changed in place; they are shared with whoever made them.
/// Source: Loshchilov and Hutter 2019; torch.optim.AdamW.
class CONTRASTIVE_API AdamW {
 public:
  AdamW(NamedTensors parameters, AdamWOptions options, const DecayRule& decays);

  /// One step with the gradients there are; a parameter without gradient is left as it is.
  /// Args: grad_divisor, a scalar that every gradient is divided by on the way (see clip_divisor); the stored
  /// gradients' values afterwards are unspecified.
  void step(double lr, const std::optional<torch::Tensor>& grad_divisor = {});

  /// Drops the gradients, so that the next backward pass writes instead of adding.
  void zero_grad();

  /// "exp_avg.<name>" and "exp_avg_sq.<name>" of every parameter, and "step" ([], fp32: steps done); shared storage.
  NamedTensors state() const;

  /// Copies a state in. Throws: CheckpointError that lists every missing, unexpected and mis-shaped tensor.
  void load_state(const NamedTensors& tensors);

  const NamedTensors& parameters() const { return parameters_; }

 private:
  /// Parameters that get the same weight decay, with their moments.
  struct Group {
    double weight_decay = 0;
    std::vector<size_t> members;  ///< indices into parameters_
  };

  void step_group(const Group& group, double lr, const std::optional<torch::Tensor>& grad_divisor);

  NamedTensors parameters_;
  AdamWOptions options_;
  std::vector<torch::Tensor> exp_avg_, exp_avg_sq_;  ///< of parameters_, in order
  torch::Tensor step_;
  Group decayed_, undecayed_;
};

}  // namespace contrastive::optim
