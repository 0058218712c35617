#pragma once

#include <cstdint>

#include <torch/types.h>

namespace contrastive::loss::detail {

/// Rows of logits that are looked at together, for a batch of `rows` on this device.
int64_t tile_rows(const torch::Tensor& features, int64_t rows);

/// Throws: Error, in the name of `operation`, unless both are floating point [B, D] of one dtype and device, B > 0.
void check_features(const char* operation, const torch::Tensor& image, const torch::Tensor& text);

/// Throws: Error unless `value` is a scalar on the features' device.
void check_scalar(const char* operation, const char* name, const torch::Tensor& value, const torch::Tensor& image);

}  // namespace contrastive::loss::detail
