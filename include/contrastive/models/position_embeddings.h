#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/core/lazy_tensor.h"
#include "contrastive/models/model_config.h"

namespace contrastive::models {

/// How a grid of image positions is stretched. `bicubic`: with antialias, half-pixel centres (open_clip, torch's
/// interpolate). `bilinear`: corners stay corners (Google's big_vision; scipy.ndimage.zoom of order 1).
enum class PositionResize { bicubic, bilinear };

/// Shapes: positions [prefix + P, D] or [1, prefix + P, D], row-major square grid after the prefix rows (class token),
/// to [.., prefix + grid * grid, D]. The prefix stays as it is. Computed in fp32, returned in the input's dtype.
/// Throws: Error if P is not a square.
CONTRASTIVE_API torch::Tensor resize_image_positions(const torch::Tensor& positions, int64_t prefix, int64_t grid,
                                                     PositionResize mode);

/// Linear interpolation without antialias, half-pixel centres, as open_clip does for another context length.
/// Shapes: [T, D] to [context_length, D].
CONTRASTIVE_API torch::Tensor resize_text_positions(const torch::Tensor& positions, int64_t context_length);

/// Fits the position embeddings among a checkpoint's tensors (open_clip's names) to the config's image size and context
/// length; nothing else is touched. Returns: the names of those that were resized.
CONTRASTIVE_API std::vector<std::string> fit_positions(std::vector<LazyTensor>& tensors, const ModelConfig& config,
                                                       PositionResize mode);

}  // namespace contrastive::models
