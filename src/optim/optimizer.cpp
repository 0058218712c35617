#include "contrastive/optim/optimizer.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"

namespace contrastive::optim {
namespace {

/// Values whose temporaries are held at a time.
constexpr int64_t kValuesPerChunk = int64_t{1} << 24;

std::string shape_of(const torch::Tensor& tensor) {
  return fmt::format("[{}]", fmt::join(tensor.sizes(), ", "));
}

/// What of a state doesn't fit, a line each.
std::vector<std::string> misfits(const std::map<std::string, torch::Tensor>& sources, const NamedTensors& targets) {
  std::vector<std::string> problems;
  std::map<std::string, torch::Tensor> known;
  for (const auto& [name, target] : targets) {
    known.emplace(name, target);
    const auto found = sources.find(name);
    if (found == sources.end()) {
      problems.push_back(fmt::format("{}: missing, expected {}", name, shape_of(target)));
    } else if (found->second.sizes() != target.sizes()) {
      problems.push_back(fmt::format("{}: expected {}, found {}", name, shape_of(target), shape_of(found->second)));
    }
  }
  for (const auto& [name, source] : sources) {
    if (!known.contains(name)) problems.push_back(fmt::format("{}: unexpected, {}", name, shape_of(source)));
  }
  return problems;
}

}  // namespace

Optimizer::Optimizer(std::string name, NamedTensors parameters, std::vector<ParameterSettings> settings)
    : name_(std::move(name)), parameters_(std::move(parameters)), settings_(std::move(settings)) {
  TORCH_CHECK(!parameters_.empty(), "[", name_, "] there are no parameters to train");
  TORCH_CHECK(settings_.size() == parameters_.size(), "[", name_, "] expected settings for ", parameters_.size(),
              " parameters, found ", settings_.size());
  const auto& first = parameters_.front().second;
  for (const auto& [parameter_name, parameter] : parameters_) {
    TORCH_CHECK(parameter.is_floating_point() && parameter.scalar_type() == first.scalar_type() &&
                    parameter.device() == first.device(),
                "[", name_, "] parameters must have one dtype and device, but ", parameter_name, " is ",
                parameter.scalar_type(), " on ", parameter.device(), " and ", parameters_.front().first, " is ",
                first.scalar_type(), " on ", first.device());
  }
  const auto options = at::TensorOptions(first.device()).dtype(at::kFloat);
  step_ = at::zeros({}, options);
  for (size_t i = 0; i < settings_.size(); ++i) {
    if (settings_[i].own_step) own_steps_.emplace(i, at::zeros({}, options));
  }
}

void Optimizer::step(double lr, const std::optional<torch::Tensor>& grad_divisor) {
  step(std::vector<double>(parameters_.size(), lr), grad_divisor);
}

void Optimizer::step(std::span<const double> lrs, const std::optional<torch::Tensor>& grad_divisor) {
  TORCH_CHECK(lrs.size() == parameters_.size(), "[", name_, "] expected ", parameters_.size(),
              " learning rates, found ", lrs.size());
  const at::NoGradGuard no_grad;
  std::vector<Update> updates;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const auto& parameter = parameters_[i].second;
    if (parameter.grad().defined()) {
      updates.push_back({i, parameter, parameter.grad(), lrs[i], settings_[i].decay});
    }
  }
  count_step(updates);
  if (!updates.empty()) update(updates, grad_divisor);
}

void Optimizer::count_step(const std::vector<Update>& updates) {
  std::vector<torch::Tensor> steps = {step_};
  for (const auto& item : updates) {
    const auto own = own_steps_.find(item.index);
    if (own != own_steps_.end()) steps.push_back(own->second);
  }
  at::_foreach_add_(steps, 1);
}

const torch::Tensor& Optimizer::step_of(size_t index) const {
  const auto own = own_steps_.find(index);
  return own == own_steps_.end() ? step_ : own->second;
}

std::vector<std::span<const Optimizer::Update>> Optimizer::chunks(const std::vector<Update>& updates) const {
  std::vector<std::span<const Update>> result;
  const std::span<const Update> all(updates);
  size_t begin = 0;
  int64_t values = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    const bool same_step = step_of(all[i].index).is_same(step_of(all[begin].index));
    if (i > begin && (!same_step || values + all[i].parameter.numel() > kValuesPerChunk)) {
      result.push_back(all.subspan(begin, i - begin));
      begin = i;
      values = 0;
    }
    values += all[i].parameter.numel();
  }
  result.push_back(all.subspan(begin));
  return result;
}

std::vector<torch::Tensor> Optimizer::divided_gradients(std::span<const Update> updates,
                                                        const std::optional<torch::Tensor>& grad_divisor) {
  std::vector<torch::Tensor> gradients;
  for (const auto& item : updates) gradients.push_back(item.gradient);
  if (grad_divisor) at::_foreach_div_(gradients, grad_divisor->to(gradients.front().options()));
  return gradients;
}

void Optimizer::descend(std::span<const Update> updates, std::vector<torch::Tensor>& directions) {
  std::vector<torch::Tensor> parameters;
  std::vector<at::Scalar> kept, rates;
  for (const auto& item : updates) {
    parameters.push_back(item.parameter);
    kept.emplace_back(1 - item.lr * item.decay);
    rates.emplace_back(-item.lr);
  }
  at::_foreach_mul_(directions, rates);
  at::_foreach_mul_(parameters, kept);
  at::_foreach_add_(parameters, directions);
}

void Optimizer::zero_grad() {
  for (auto& [name, parameter] : parameters_) parameter.mutable_grad() = torch::Tensor();
}

NamedTensors Optimizer::state() const {
  auto tensors = moments();
  for (const auto& [index, step] : own_steps_) tensors.emplace_back("step." + parameters_[index].first, step);
  tensors.emplace_back("step", step_);
  return tensors;
}

void Optimizer::load_state(const NamedTensors& tensors) {
  const at::NoGradGuard no_grad;
  const std::map<std::string, torch::Tensor> sources(tensors.begin(), tensors.end());
  const auto targets = state();
  const auto problems = misfits(sources, targets);
  if (!problems.empty()) {
    throw CheckpointError(
        fmt::format("[{}] the optimizer state doesn't fit the parameters:\n  {}", name_, fmt::join(problems, "\n  ")));
  }
  for (const auto& [name, target] : targets) target.copy_(sources.at(name));
}

std::vector<ParameterSettings> settings_of(const NamedTensors& parameters, double decay, const DecayRule& decays) {
  std::vector<ParameterSettings> settings;
  for (const auto& [name, parameter] : parameters) settings.push_back({.decay = decays(name, parameter) ? decay : 0});
  return settings;
}

}  // namespace contrastive::optim
