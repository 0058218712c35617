#include "contrastive/optim/torch_state.h"

#include <map>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"

namespace contrastive::optim {
namespace {

[[noreturn]] void fail(const std::string& message) {
  throw CheckpointError("[optimizer state] " + message);
}

const TorchValue& child(const TorchValue& parent, const char* key) {
  const auto* value = parent.find(key);
  if (value == nullptr) fail(fmt::format("has no '{}'; it is not that of torch.optim.AdamW", key));
  return *value;
}

const TorchValue& optimizer_of(const TorchFile& file) {
  const auto* optimizer = file.root().find("optimizer");
  if (optimizer == nullptr) fail("is not in this file, which has no entry 'optimizer'");
  return *optimizer;
}

AdamWOptions options_of(const TorchValue& group) {
  AdamWOptions options;
  const auto& betas = child(group, "betas").items();
  if (betas.size() != 2) fail("has other than two betas");
  options.beta1 = betas[0].as_float();
  options.beta2 = betas[1].as_float();
  options.eps = child(group, "eps").as_float();
  options.weight_decay = child(group, "weight_decay").as_float();
  if (child(group, "amsgrad").as_bool()) fail("was made with amsgrad, which is not supported");
  return options;
}

bool differ_beyond_decay(const AdamWOptions& a, const AdamWOptions& b) {
  return a.beta1 != b.beta1 || a.beta2 != b.beta2 || a.eps != b.eps;
}

/// The moments of one parameter.
struct Entry {
  torch::Tensor step, exp_avg, exp_avg_sq;
};

Entry entry_of(const TorchValue& value) {
  const auto tensor = [&](const char* key) { return child(value, key).as_tensor().load(); };
  const auto& step = child(value, "step");  // a number before PyTorch 1.12
  return {step.is(TorchValue::Kind::kTensor) ? step.as_tensor().load().to(at::kFloat).reshape({})
                                             : at::full({}, step.as_float(), at::kFloat),
          tensor("exp_avg"), tensor("exp_avg_sq")};
}

std::map<int64_t, Entry> entries_by_number(const TorchValue& optimizer) {
  std::map<int64_t, Entry> entries;
  for (const auto& [number, value] : child(optimizer, "state").entries()) {
    entries.emplace(number.as_int(), entry_of(value));
  }
  return entries;
}

/// The parameters in the file's order.
NamedTensors in_file_order(const NamedTensors& parameters, const DecayRule& decays) {
  NamedTensors ordered;
  for (const bool decayed : {false, true}) {
    for (const auto& [name, parameter] : parameters) {
      if (decays(name, parameter) == decayed) ordered.emplace_back(name, parameter);
    }
  }
  return ordered;
}

}  // namespace

TorchAdamWSettings torch_adamw_settings(const TorchFile& file) {
  TorchAdamWSettings settings;
  bool is_first = true;
  for (const auto& group : child(optimizer_of(file), "param_groups").items()) {
    const auto options = options_of(group);
    const double lr = child(group, "lr").as_float();
    if (!is_first && (differ_beyond_decay(options, settings.options) || lr != settings.lr)) {
      fail("has groups that differ in more than weight decay");
    }
    const double decay =
        is_first ? options.weight_decay : std::max(options.weight_decay, settings.options.weight_decay);
    settings = {options, lr};
    settings.options.weight_decay = decay;
    is_first = false;
  }
  if (is_first) fail("has no parameter groups");
  return settings;
}

NamedTensors adamw_state_from_torch(const TorchFile& file, const NamedTensors& parameters, const DecayRule& decays) {
  const auto entries = entries_by_number(optimizer_of(file));
  const auto ordered = in_file_order(parameters, decays);
  if (entries.size() != ordered.size()) {
    fail(fmt::format("is of {} parameters, the model has {}", entries.size(), ordered.size()));
  }
  NamedTensors state;
  torch::Tensor step;
  for (size_t i = 0; i < ordered.size(); ++i) {
    const auto& [name, parameter] = ordered[i];
    const auto found = entries.find(static_cast<int64_t>(i));
    if (found == entries.end()) fail(fmt::format("has no parameter number {}, expected {}", i, name));
    const auto& entry = found->second;
    if (entry.exp_avg.sizes() != parameter.sizes() || entry.exp_avg_sq.sizes() != parameter.sizes()) {
      fail(fmt::format("number {} has moments of shape [{}], expected [{}] of {}", i,
                       fmt::join(entry.exp_avg.sizes(), ", "), fmt::join(parameter.sizes(), ", "), name));
    }
    if (step.defined() && !at::equal(step, entry.step)) fail(fmt::format("number {} is at another step", i));
    step = entry.step;
    state.emplace_back("exp_avg." + name, entry.exp_avg);
    state.emplace_back("exp_avg_sq." + name, entry.exp_avg_sq);
  }
  state.emplace_back("step", step);
  return state;
}

}  // namespace contrastive::optim
