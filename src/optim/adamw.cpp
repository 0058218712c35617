#include "contrastive/optim/adamw.h"

#include <map>
#include <utility>

#include <ATen/ATen.h>

namespace contrastive::optim {
namespace {

/// What one fused call takes; parameters of one learning rate and decay.
struct Group {
  std::vector<torch::Tensor> parameters, gradients, exp_avg, exp_avg_sq, steps;
};

/// The fused kernel takes an fp32 divisor only; fp64 gradients are divided beforehand.
bool kernel_divides(const torch::Tensor& parameter) {
  return parameter.scalar_type() != at::kDouble;
}

}  // namespace

AdamW::AdamW(NamedTensors parameters, AdamWOptions options, std::vector<ParameterSettings> settings)
    : Optimizer("adamw", std::move(parameters), std::move(settings)), options_(options) {
  for (const auto& [name, parameter] : this->parameters()) {
    exp_avg_.push_back(at::zeros_like(parameter));
    exp_avg_sq_.push_back(at::zeros_like(parameter));
  }
}

AdamW::AdamW(const NamedTensors& parameters, AdamWOptions options, const DecayRule& decays)
    : AdamW(parameters, options, settings_of(parameters, options.weight_decay, decays)) {}

void AdamW::update(const std::vector<Update>& updates, const std::optional<torch::Tensor>& grad_divisor) {
  std::map<std::pair<double, double>, Group> groups;
  for (const auto& item : updates) {
    auto& group = groups[{item.lr, item.decay}];
    group.parameters.push_back(item.parameter);
    group.gradients.push_back(item.gradient);
    group.exp_avg.push_back(exp_avg_[item.index]);
    group.exp_avg_sq.push_back(exp_avg_sq_[item.index]);
    group.steps.push_back(step_of(item.index));
  }
  for (auto& [rates, group] : groups) {
    std::optional<torch::Tensor> divisor;
    if (grad_divisor && kernel_divides(group.parameters.front())) {
      divisor = grad_divisor->to(group.steps.front().options());
    } else if (grad_divisor) {
      at::_foreach_div_(group.gradients, *grad_divisor);
    }
    at::_fused_adamw_(group.parameters, group.gradients, group.exp_avg, group.exp_avg_sq, /*max_exp_avg_sqs=*/{},
                      group.steps, /*lr=*/rates.first, options_.beta1, options_.beta2, /*weight_decay=*/rates.second,
                      options_.eps, /*amsgrad=*/false, /*maximize=*/false, divisor);
  }
}

NamedTensors AdamW::moments() const {
  NamedTensors tensors;
  const auto& all = parameters();
  for (size_t i = 0; i < all.size(); ++i) tensors.emplace_back("exp_avg." + all[i].first, exp_avg_[i]);
  for (size_t i = 0; i < all.size(); ++i) tensors.emplace_back("exp_avg_sq." + all[i].first, exp_avg_sq_[i]);
  return tensors;
}

}  // namespace contrastive::optim
