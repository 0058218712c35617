#include "contrastive/optim/adamw.h"

#include <algorithm>
#include <map>
#include <utility>

#include <ATen/ATen.h>

#include "contrastive/ops/adamw.h"

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

void AdamW::renew_copies(const std::vector<std::pair<torch::Tensor, models::ComputeCopy*>>& copies) {
  const auto& all = parameters();
  copies_.assign(all.size(), nullptr);
  for (size_t i = 0; i < all.size(); ++i) {
    const auto found = std::find_if(copies.begin(), copies.end(),
                                    [&](const auto& entry) { return entry.first.is_same(all[i].second); });
    if (found == copies.end()) continue;
    copies_[i] = found->second;
    copies_[i]->keep();
  }
}

void AdamW::update_on_cpu(const Update& item, double grad_divisor) {
  const auto& parameter = item.parameter;
  const bool same_order = item.gradient.strides() == parameter.strides();
  const auto gradient = same_order ? item.gradient : at::empty_like(parameter).copy_(item.gradient);
  auto* const copy = copies_.empty() ? nullptr : copies_[item.index];
  const auto renewed = copy == nullptr ? torch::Tensor() : copy->begin_update(parameter);
  ops::adamw_step(parameter, gradient, exp_avg_[item.index], exp_avg_sq_[item.index], renewed,
                  {.lr = item.lr,
                   .beta1 = options_.beta1,
                   .beta2 = options_.beta2,
                   .eps = options_.eps,
                   .decay = item.decay,
                   .step = step_of(item.index).item<double>(),
                   .grad_divisor = grad_divisor});
  if (renewed.defined()) copy->confirm_update(parameter);
}

void AdamW::update(const std::vector<Update>& updates, const std::optional<torch::Tensor>& grad_divisor) {
  const auto& first = updates.front().parameter;
  if (first.is_cpu() && first.scalar_type() == at::kFloat) {
    const double divisor = grad_divisor ? grad_divisor->item<double>() : 1;
    for (const auto& item : updates) update_on_cpu(item, divisor);
    return;
  }
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
    for (const auto& parameter : group.parameters) parameter.unsafeGetTensorImpl()->bump_version();  // it doesn't
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
