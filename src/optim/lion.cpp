#include "contrastive/optim/lion.h"

#include <utility>

#include <ATen/ATen.h>

namespace contrastive::optim {

Lion::Lion(NamedTensors parameters, LionOptions options, std::vector<ParameterSettings> settings)
    : Optimizer("lion", std::move(parameters), std::move(settings)), options_(options) {
  for (const auto& [name, parameter] : this->parameters()) exp_avg_.push_back(at::zeros_like(parameter));
}

void Lion::update(const std::vector<Update>& updates, const std::optional<torch::Tensor>& grad_divisor) {
  for (const auto& chunk : chunks(updates)) {
    const auto gradients = divided_gradients(chunk, grad_divisor);
    std::vector<torch::Tensor> exp_avg;
    for (const auto& item : chunk) exp_avg.push_back(exp_avg_[item.index]);
    auto directions = at::_foreach_mul(exp_avg, options_.beta1);
    at::_foreach_add_(directions, gradients, 1 - options_.beta1);
    at::_foreach_sign_(directions);
    at::_foreach_mul_(exp_avg, options_.beta2);
    at::_foreach_add_(exp_avg, gradients, 1 - options_.beta2);
    descend(chunk, directions);
  }
}

NamedTensors Lion::moments() const {
  NamedTensors tensors;
  for (size_t i = 0; i < exp_avg_.size(); ++i) tensors.emplace_back("exp_avg." + parameters()[i].first, exp_avg_[i]);
  return tensors;
}

}  // namespace contrastive::optim
