#include "contrastive/models/tower.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"

#include "models/state_matcher.h"

namespace contrastive::models {
bool is_projection(const std::string& name) {
  return name == "proj" || name.starts_with("proj.") || name.starts_with("head.proj.") ||
         name.starts_with("attnpool.c_proj.") || name.starts_with("text_projection");
}

void TowerImpl::lock(const LockOptions& options) {
  if (options.unlocked_groups < 0 || options.unlocked_groups > num_layer_groups()) {
    throw ConfigError(
        fmt::format("[lock] unlocked_groups must be in [0, {}] (the layer groups of the tower), but is {}",
                    num_layer_groups(), options.unlocked_groups));
  }
  lock_ = options;
  is_any_locked_ = options.unlocked_groups < num_layer_groups() || options.head;
  features_are_locked_ = options.unlocked_groups == 0;
  for (auto& item : named_parameters()) item.value().set_requires_grad(!is_locked(item.key()));
  train(wants_training_);
}

NamedTensors TowerImpl::state() const {
  NamedTensors tensors;
  detail::append_all(*this, "", tensors);
  for (auto& [name, tensor] : tensors) name = checkpoint_name(name);
  return tensors;
}

bool TowerImpl::load_state(const std::vector<LazyTensor>& tensors) {
  NamedTensors own;
  detail::append_all(*this, "", own);
  NamedTensors body, head;
  for (auto& [name, tensor] : own) {
    (layer_group(name) == kHeadGroup ? head : body).emplace_back(checkpoint_name(name), tensor);
  }
  std::vector<LazyTensor> body_source, head_source;
  for (const auto& tensor : tensors) (is_projection(tensor.name) ? head_source : body_source).push_back(tensor);
  const detail::StateMatcher body_matcher(body, body_source, {});
  body_matcher.throw_if_any_problem();
  body_matcher.copy();
  const detail::StateMatcher head_matcher(head, head_source, {});
  if (head.empty() || !head_matcher.fits()) return false;
  head_matcher.copy();
  return true;
}

void TowerImpl::unlock() {
  lock({.unlocked_groups = num_layer_groups(), .head = false});
}

void TowerImpl::reset_head(at::Generator& generator) {
  const at::NoGradGuard no_grad;
  for (auto& item : named_parameters()) {
    auto& values = item.value();
    if (layer_group(item.key()) != kHeadGroup) continue;
    if (values.dim() < 2) {
      values.zero_();
    } else {
      const auto inputs = item.key().ends_with("weight") ? values.size(1) : values.size(0);
      values.normal_(0, 1.0 / std::sqrt(static_cast<double>(inputs)), generator);
    }
  }
}

bool TowerImpl::is_locked(const std::string& name) const {
  if (!is_any_locked_) return false;
  const auto group = layer_group(name);
  return group == kHeadGroup ? lock_.head : group < num_layer_groups() - lock_.unlocked_groups;
}

void TowerImpl::train(bool on) {
  wants_training_ = on;
  torch::nn::Module::train(on && !features_are_locked_);
  if (!on) return;
  // Parents come before their children, which have the last word.
  for (const auto& item : named_modules("", /*include_self=*/false)) {
    const auto parameters = item.value()->parameters();
    const bool learns = parameters.empty()
                            ? !features_are_locked_
                            : std::any_of(parameters.begin(), parameters.end(),
                                          [](const auto& parameter) { return parameter.requires_grad(); });
    item.value()->train(learns);
  }
}

}  // namespace contrastive::models
