#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

namespace contrastive::adapt::detail {

/// Rows of known classes. `labels` are int64 in CPU memory, in any order.
struct LabelledRows {
  torch::Tensor rows;    ///< [n, D]
  torch::Tensor labels;  ///< [n]
};

/// The linear classifier f . weights^T + bias.
struct LinearClassifier {
  torch::Tensor weights;  ///< [C, D]
  torch::Tensor bias;     ///< [C]
};

/// Gaussian discriminant analysis of all blocks' rows, n in all, with equal priors and one covariance S (of n - 1) for
/// all classes, shrunk: the precision is P = D ((n - 1) S + tr(S) I)^-1. Where no row differs from its class's mean (a
/// single one a class, say) nothing is known of S, and P = D I, which is the nearest class mean.
/// Computed in fp64, block by block of rows; the result has the rows' dtype. Every class needs a row.
LinearClassifier fit_gaussians(const std::vector<LabelledRows>& blocks, int64_t num_classes);

}  // namespace contrastive::adapt::detail
