#pragma once

#include <functional>
#include <string>

#include <torch/types.h>

#include "contrastive/core/export.h"

namespace contrastive::optim {

/// Whether weight decay applies to a parameter.
using DecayRule = std::function<bool(const std::string& name, const torch::Tensor& parameter)>;

/// The rule of open_clip 3.x, with which the published models were trained: at least two dimensions, and none of "bn",
/// "ln", "bias", "logit_scale" in the name. Positional embeddings decay.
CONTRASTIVE_API bool open_clip_decays(const std::string& name, const torch::Tensor& parameter);

/// The rule of open_clip's main branch: at least two dimensions, and not a positional embedding of a transformer. (That
/// of a ResNet's attention pool decays.)
CONTRASTIVE_API bool matrix_decays(const std::string& name, const torch::Tensor& parameter);

/// big_vision's rule, which is told there by the name `.*/kernel`: the weights of dense layers and convolutions. No
/// bias, norm, token or position table, class token, probe, scale or offset decays.
CONTRASTIVE_API bool kernel_decays(const std::string& name, const torch::Tensor& parameter);

/// The rule of a name: "open_clip_3" is open_clip_decays, "open_clip_main" is matrix_decays, "kernels" is
/// kernel_decays; "all" and "none". Throws: ConfigError.
CONTRASTIVE_API DecayRule decay_rule(const std::string& name);

}  // namespace contrastive::optim
