#pragma once

#include <array>

#include <torch/types.h>

#include "contrastive/core/export.h"

namespace contrastive::data {

/// Pixels to what an image tower takes: (pixels / 255 - mean) / std, on `device`; the bytes travel, not the floats.
/// Shapes: pixels [B, H, W, 3] uint8, to [B, 3, H, W] fp32 in channels-last memory.
CONTRASTIVE_API torch::Tensor normalize_images(const torch::Tensor& pixels, const std::array<float, 3>& mean,
                                               const std::array<float, 3>& std, torch::Device device);

}  // namespace contrastive::data
