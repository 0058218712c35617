#include "models/state_matcher.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"

namespace contrastive::models::detail {
namespace {

const std::vector<int64_t> kOneValue{1};

bool ends_with_counter(const std::string& name) {
  return name.ends_with(".num_batches_tracked");
}

std::string shape_text(at::IntArrayRef sizes) {
  return fmt::format("[{}]", fmt::join(sizes, ", "));
}

bool is_logit_scalar(const std::string& name) {
  return name == "logit_scale" || name == "logit_bias";
}

}  // namespace

void append_own(const torch::nn::Module& module, const std::string& prefix, NamedTensors& tensors) {
  for (const auto& item : module.named_parameters(/*recurse=*/false)) tensors.emplace_back(prefix + item.key(), *item);
  for (const auto& item : module.named_buffers(/*recurse=*/false)) tensors.emplace_back(prefix + item.key(), *item);
}

void append_all(const torch::nn::Module& module, const std::string& prefix, NamedTensors& tensors) {
  append_own(module, prefix, tensors);
  for (const auto& child : module.named_children()) append_all(*child.value(), prefix + child.key() + ".", tensors);
}

StateMatcher::StateMatcher(const NamedTensors& targets, const std::vector<LazyTensor>& sources,
                           const std::function<bool(const std::string&)>& may_be_missing)
    : may_be_missing_(may_be_missing) {
  for (const auto& source : sources) {
    if (!sources_.emplace(source.name, &source).second) problems_.push_back(fmt::format("{}: twice", source.name));
  }
  for (const auto& [name, target] : targets) match(name, target);
  for (const auto& [name, source] : sources_) {
    problems_.push_back(fmt::format("{}: unexpected, {}", name, shape_text(source->shape)));
  }
}

void StateMatcher::throw_if_any_problem() const {
  if (problems_.empty()) return;
  throw CheckpointError(fmt::format("[load_state] {} tensor{} of the weights {} the model:\n  {}", problems_.size(),
                                    problems_.size() == 1 ? "" : "s",
                                    problems_.size() == 1 ? "doesn't fit" : "don't fit", fmt::join(problems_, "\n  ")));
}

void StateMatcher::copy() const {
  const at::NoGradGuard no_grad;
  for (const auto& [target, source] : pairs_) {
    auto to = target;
    source != nullptr ? to.copy_(source->load().view_as(target)) : to.zero_();
  }
}

std::vector<LazyTensor> StateMatcher::ordered() const {
  std::vector<LazyTensor> tensors;
  for (const auto& [target, source] : pairs_) {
    const auto shape = target.sizes().vec();
    const auto make = [source = source, shape] {
      return source != nullptr ? source->load().reshape(shape) : at::zeros(shape, at::kLong);
    };
    tensors.push_back({names_.at(tensors.size()), source != nullptr ? source->dtype : at::kLong, shape, make});
  }
  return tensors;
}

void StateMatcher::match(const std::string& name, const torch::Tensor& target) {
  const auto found = sources_.find(name);
  if (found == sources_.end()) {
    if (may_be_missing_ && may_be_missing_(name)) return kept_.push_back(name);
    if (ends_with_counter(name)) return add(name, target, nullptr);
    problems_.push_back(fmt::format("{}: missing, expected {}", name, shape_text(target.sizes())));
    return;
  }
  const auto* source = found->second;
  sources_.erase(found);
  const bool fits = target.sizes() == source->shape || (is_logit_scalar(name) && source->shape == kOneValue);
  if (!fits) {
    problems_.push_back(
        fmt::format("{}: expected {}, found {}", name, shape_text(target.sizes()), shape_text(source->shape)));
  }
  add(name, target, source);
}

void StateMatcher::add(const std::string& name, const torch::Tensor& target, const LazyTensor* source) {
  names_.push_back(name);
  pairs_.emplace_back(target, source);
}

}  // namespace contrastive::models::detail
