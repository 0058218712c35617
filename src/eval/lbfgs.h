#pragma once

#include <cstdint>
#include <functional>

#include <torch/types.h>

#include "contrastive/core/export.h"

namespace contrastive::eval::detail {

/// A smooth function to be minimised. Points and gradients are fp64 vectors [n] on one device.
struct LbfgsFunction {
  /// The value at a point, with its gradient. A value that is not finite counts as too large.
  std::function<double(const torch::Tensor& point, torch::Tensor& gradient)> value = {};
  /// A symmetric positive estimate of the inverse second derivative times a vector; empty: the identity.
  std::function<torch::Tensor(const torch::Tensor& vector)> precondition = {};
  /// Whether a point is good enough; `decrease` estimates how far its value lies above the minimum.
  std::function<bool(double value, const torch::Tensor& gradient, double decrease)> is_done = {};
};

struct LbfgsOptions {
  int64_t max_iterations = 1000;
  int64_t history = 10;
  torch::ScalarType history_dtype = torch::kDouble;  ///< of the steps that are kept, and of directions
  double noise = 1e-15;                              ///< rounding error of values, relative to them
};

struct LbfgsResult {
  torch::Tensor point;
  double value = 0;
  int64_t iterations = 0;
  int64_t evaluations = 0;
  bool converged = false;  ///< is_done() said so; else the iterations or the precision came to an end
};

/// Limited-memory BFGS with a line search that ends at strong Wolfe points (or, where values differ by no more than
/// their noise, at points with a small enough slope).
/// Throws: Error if the value at the start is not finite.
/// Source: Nocedal and Wright, Numerical Optimization, algorithms 7.4 and 3.5; the approximate condition: Hager and
/// Zhang 2005.
CONTRASTIVE_API LbfgsResult minimise(const LbfgsFunction& function, const torch::Tensor& start,
                                     const LbfgsOptions& options);

}  // namespace contrastive::eval::detail
