#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

#include "contrastive/adapt/adapter.h"

namespace contrastive::adapt::detail {

/// Adds, for every pair of an outer and an inner value, the number of images whose logits base + outer_value * outer +
/// inner_value * inner have their first highest at the image's label: exactly as if each pair was scored by itself,
/// but in one pass over the classes for all inner values, which are right on an interval.
///
/// Shapes: terms [n, C] fp32 or fp64 in CPU memory; labels [n] int64 in [0, C); correct [outer values, inner values]
/// int64, contiguous. A term that is undefined has a single value, which doesn't matter. inner_values must rise.
void count_correct(const ScoreTerms& terms, const torch::Tensor& labels, const std::vector<double>& outer_values,
                   const std::vector<double>& inner_values, torch::Tensor& correct);

}  // namespace contrastive::adapt::detail
