#include "contrastive/optim/decay_rules.h"

#include <array>
#include <string_view>

#include <ATen/core/Tensor.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"

namespace contrastive::optim {
namespace {

constexpr int64_t kMatrixDim = 2;

/// A table that is looked up by index: no kernel, although its parameter is called weight.
bool is_table(std::string_view name) {
  return name.ends_with("token_embedding.weight") || name.ends_with("_embeddings.weight");
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

bool kernel_decays(const std::string& name, const torch::Tensor& parameter) {
  if (parameter.dim() < kMatrixDim || is_table(name)) return false;
  const auto own_name = name.substr(name.rfind('.') + 1);
  return own_name == "weight" || own_name == "in_proj_weight" || own_name == "proj" || own_name == "text_projection";
}

DecayRule decay_rule(const std::string& name) {
  if (name == "open_clip_3") return open_clip_decays;
  if (name == "open_clip_main") return matrix_decays;
  if (name == "kernels") return kernel_decays;
  if (name == "all" || name == "none") {
    return [decays = name == "all"](const std::string&, const torch::Tensor&) { return decays; };
  }
  throw ConfigError(
      fmt::format("[decay_rule] expected open_clip_3, open_clip_main, kernels, all or none, found {}", name));
}

}  // namespace contrastive::optim
