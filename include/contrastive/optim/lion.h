#pragma once

#include <optional>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/optim/optimizer.h"

namespace contrastive::optim {

struct LionOptions {
  double beta1 = 0.9;   ///< share of the momentum in the direction of a step
  double beta2 = 0.99;  ///< share of the momentum that is kept
};

/// Steps by the sign of an interpolation between momentum and gradient, with decoupled weight decay. Wants a 3 to 10
/// times smaller learning rate than AdamW. State: "exp_avg.<name>", in the shape and dtype of the parameter.
/// Source: Chen et al. 2023, arXiv 2302.06675, algorithm 2.
class CONTRASTIVE_API Lion : public Optimizer {
 public:
  Lion(NamedTensors parameters, LionOptions options, std::vector<ParameterSettings> settings);

 private:
  void update(const std::vector<Update>& updates, const std::optional<torch::Tensor>& grad_divisor) override;
  NamedTensors moments() const override;

  LionOptions options_;
  std::vector<torch::Tensor> exp_avg_;  ///< of parameters(), in order
};

}  // namespace contrastive::optim
