#include "contrastive/optim/adamw.h"

#include <array>
#include <map>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"

namespace contrastive::optim {
namespace {

constexpr int64_t kMatrixDim = 2;

std::string shape_of(const torch::Tensor& tensor) {
  return fmt::format("[{}]", fmt::join(tensor.sizes(), ", "));
}

/// The fused kernel takes an fp32 divisor only; fp64 gradients are divided beforehand.
bool kernel_divides(const torch::Tensor& parameter) {
  return parameter.scalar_type() != at::kDouble;
}

}  // namespace

bool open_clip_decays(const std::string& name, const torch::Tensor& parameter) {
  static constexpr std::array kExcluded = {"bn", "ln", "bias", "logit_scale"};
  for (const auto* part : kExcluded) {
    if (name.find(part) != std::string::npos) return false;
  }
  return parameter.dim() >= kMatrixDim;
}

bool matrix_decays(const std::string& name, const torch::Tensor& parameter) {
  return parameter.dim() >= kMatrixDim && name != "positional_embedding" && name != "visual.positional_embedding";
}

DecayRule decay_rule(const std::string& name) {
  if (name == "open_clip_3") return open_clip_decays;
  if (name == "open_clip_main") return matrix_decays;
  throw ConfigError(fmt::format("[decay_rule] expected open_clip_3 or open_clip_main, found {}", name));
}

AdamW::AdamW(NamedTensors parameters, AdamWOptions options, const DecayRule& decays)
    : parameters_(std::move(parameters)), options_(options) {
  TORCH_CHECK(!parameters_.empty(), "[AdamW] there are no parameters to train");
  decayed_.weight_decay = options_.weight_decay;
  const auto& first = parameters_.front().second;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const auto& [name, parameter] = parameters_[i];
    TORCH_CHECK(parameter.is_floating_point() && parameter.scalar_type() == first.scalar_type() &&
                    parameter.device() == first.device(),
                "[AdamW] parameters must have one dtype and device, but ", name, " is ", parameter.scalar_type(),
                " on ", parameter.device(), " and ", parameters_.front().first, " is ", first.scalar_type(), " on ",
                first.device());
    (decays(name, parameter) ? decayed_ : undecayed_).members.push_back(i);
    exp_avg_.push_back(at::zeros_like(parameter));
    exp_avg_sq_.push_back(at::zeros_like(parameter));
  }
  step_ = at::zeros({}, at::TensorOptions(first.device()).dtype(at::kFloat));
}

void AdamW::step(double lr, const std::optional<torch::Tensor>& grad_divisor) {
  const at::NoGradGuard no_grad;
  step_.add_(1);
  step_group(decayed_, lr, grad_divisor);
  step_group(undecayed_, lr, grad_divisor);
}

void AdamW::step_group(const Group& group, double lr, const std::optional<torch::Tensor>& grad_divisor) {
  std::vector<torch::Tensor> parameters, gradients, exp_avg, exp_avg_sq;
  for (const auto i : group.members) {
    const auto& parameter = parameters_[i].second;
    if (!parameter.grad().defined()) continue;
    parameters.push_back(parameter);
    gradients.push_back(parameter.grad());
    exp_avg.push_back(exp_avg_[i]);
    exp_avg_sq.push_back(exp_avg_sq_[i]);
  }
  if (parameters.empty()) return;
  std::optional<torch::Tensor> divisor;
  if (grad_divisor && kernel_divides(parameters.front())) {
    divisor = grad_divisor->to(step_.options());
  } else if (grad_divisor) {
    at::_foreach_div_(gradients, *grad_divisor);
  }
  const std::vector<torch::Tensor> steps(parameters.size(), step_);
  at::_fused_adamw_(parameters, gradients, exp_avg, exp_avg_sq, /*max_exp_avg_sqs=*/{}, steps, lr, options_.beta1,
                    options_.beta2, group.weight_decay, options_.eps, /*amsgrad=*/false, /*maximize=*/false, divisor);
}

void AdamW::zero_grad() {
  for (auto& [name, parameter] : parameters_) parameter.mutable_grad() = torch::Tensor();
}

NamedTensors AdamW::state() const {
  NamedTensors tensors;
  for (size_t i = 0; i < parameters_.size(); ++i) tensors.emplace_back("exp_avg." + parameters_[i].first, exp_avg_[i]);
  for (size_t i = 0; i < parameters_.size(); ++i) {
    tensors.emplace_back("exp_avg_sq." + parameters_[i].first, exp_avg_sq_[i]);
  }
  tensors.emplace_back("step", step_);
  return tensors;
}

void AdamW::load_state(const NamedTensors& tensors) {
  const at::NoGradGuard no_grad;
  const auto targets = state();
  std::map<std::string, torch::Tensor> sources(tensors.begin(), tensors.end());
  std::vector<std::string> problems;
  for (const auto& [name, target] : targets) {
    const auto found = sources.find(name);
    if (found == sources.end()) {
      problems.push_back(fmt::format("{}: missing, expected {}", name, shape_of(target)));
    } else if (found->second.sizes() != target.sizes()) {
      problems.push_back(fmt::format("{}: expected {}, found {}", name, shape_of(target), shape_of(found->second)));
    }
  }
  std::map<std::string, torch::Tensor> known(targets.begin(), targets.end());
  for (const auto& [name, source] : sources) {
    if (!known.contains(name)) problems.push_back(fmt::format("{}: unexpected, {}", name, shape_of(source)));
  }
  if (!problems.empty()) {
    throw CheckpointError(
        fmt::format("[AdamW] the optimizer state doesn't fit the parameters:\n  {}", fmt::join(problems, "\n  ")));
  }
  for (auto& [name, target] : known) target.copy_(sources.at(name));
}

}  // namespace contrastive::optim
