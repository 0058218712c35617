#pragma once

#include <ATen/core/Generator.h>

#include "contrastive/models/layers.h"
#include "contrastive/models/transformer.h"

/// timm's initialisation of a ViT.
namespace contrastive::models::detail {

inline constexpr double kTimmWeightStd = 0.02;

inline void draw_timm_linear(const Linear& linear, at::Generator& generator) {
  linear->weight.normal_(0, kTimmWeightStd, generator);
  linear->bias.zero_();
}

inline void draw_timm_mlp(const Mlp& mlp, at::Generator& generator) {
  draw_timm_linear(mlp->c_fc, generator);
  draw_timm_linear(mlp->c_proj, generator);
}

}  // namespace contrastive::models::detail
