#pragma once

#include <optional>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/optim/optimizer.h"

namespace contrastive::optim {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.98;
  double eps = 1e-6;
  double weight_decay = 0.2;  ///< looked at only where a decay rule says which parameters decay
};

/// Adam with decoupled weight decay, in one pass over memory: fp32 in CPU memory by our kernel, else one fused call of
/// LibTorch's for each pair of learning rate and decay.
/// State: "exp_avg.<name>" and "exp_avg_sq.<name>", in the shape and dtype of the parameter.
/// Source: Loshchilov and Hutter 2019; torch.optim.AdamW.
class CONTRASTIVE_API AdamW : public Optimizer {
 public:
  AdamW(NamedTensors parameters, AdamWOptions options, std::vector<ParameterSettings> settings);

  /// With options.weight_decay for the parameters that the rule names.
  AdamW(const NamedTensors& parameters, AdamWOptions options, const DecayRule& decays);

  /// From now on a step also renews these copies of parameters (models::compute_copies), which must outlive this.
  void renew_copies(const std::vector<std::pair<torch::Tensor, models::ComputeCopy*>>& copies) override;

 private:
  void update(const std::vector<Update>& updates, const std::optional<torch::Tensor>& grad_divisor) override;
  NamedTensors moments() const override;
  void update_on_cpu(const Update& item, double grad_divisor);

  AdamWOptions options_;
  std::vector<torch::Tensor> exp_avg_, exp_avg_sq_;  ///< of parameters(), in order
  std::vector<models::ComputeCopy*> copies_;         ///< of parameters(), in order; null for none
};

}  // namespace contrastive::optim
