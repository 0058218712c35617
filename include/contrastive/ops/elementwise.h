#pragma once

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/ops/activation.h"

/// What stands between the matrix products of a transformer block, one pass over memory each, with the backward pass
/// spelled out: these functions know nothing of autograd. They take contiguous matrices in CPU memory, [N, C], of fp32,
/// fp64 or bf16; bf16 is computed with in fp32. Vectors (weights, biases, their gradients, statistics) are fp64 with
/// fp64, else fp32. The results don't depend on the number of threads.
namespace contrastive::ops {

/// Whether the functions here take tensors like this.
CONTRASTIVE_API bool has_kernels(const torch::Tensor& x);

/// The dtype of vectors beside matrices of x's.
CONTRASTIVE_API torch::ScalarType vector_dtype(const torch::Tensor& x);

/// activation(x + bias). Shapes: x [N, C], bias [C], to [N, C].
CONTRASTIVE_API torch::Tensor activate(Activation activation, const torch::Tensor& x, const torch::Tensor& bias);

struct ActivationGradient {
  torch::Tensor activated;  ///< activate(activation, x, bias), again
  torch::Tensor x;
  torch::Tensor bias;
};

/// `gradient` is that of the result; its memory becomes the gradient of x.
CONTRASTIVE_API ActivationGradient activation_backward(Activation activation, const torch::Tensor& gradient,
                                                       const torch::Tensor& x, const torch::Tensor& bias);

/// A matrix whose rows have mean 0 and variance 1, times weight, plus bias.
struct NormalizedRows {
  torch::Tensor values;
  torch::Tensor mean, inverse_std;  ///< of the rows of what was normalised, [N]
};

CONTRASTIVE_API NormalizedRows layer_norm(const torch::Tensor& x, const torch::Tensor& weight,
                                          const torch::Tensor& bias, double eps);

struct LayerNormGradient {
  torch::Tensor x;
  torch::Tensor weight, bias;
  torch::Tensor values;  ///< layer_norm(x).values, again
};

/// The gradient of x is what comes through the normalisation plus `residual`, which comes around it.
CONTRASTIVE_API LayerNormGradient layer_norm_backward(const torch::Tensor& gradient, const torch::Tensor& residual,
                                                      const torch::Tensor& x, const torch::Tensor& mean,
                                                      const torch::Tensor& inverse_std, const torch::Tensor& weight,
                                                      const torch::Tensor& bias);

/// x + y + bias, in the memory of y.
CONTRASTIVE_API torch::Tensor add_residual(const torch::Tensor& x, const torch::Tensor& y, const torch::Tensor& bias);

/// Sums over the rows, [C].
CONTRASTIVE_API torch::Tensor column_sums(const torch::Tensor& x);

}  // namespace contrastive::ops
