#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/record_function.h>

#include "contrastive/ops/elementwise.h"
#include "contrastive/ops/vector_math.h"

#include "ops/check_tensors.h"
#include "ops/row_parts.h"

namespace contrastive::ops {
namespace {

using detail::Compute;
using detail::load;
using detail::store;

/// Some rows of a backward pass.
template <typename T>
struct BackwardRows {
  const T *gradient, *residual, *x;
  const Compute<T>*mean, *inverse_std, *weight, *bias;
  T *result, *values;
  Compute<T>* sums;  ///< [2 C]: gradients of weight and bias are added to these
};

template <typename T>
CONTRASTIVE_INLINE void backward_rows_body(BackwardRows<T> p, int64_t rows, int64_t width) {
  using C = Compute<T>;
  for (int64_t row = 0; row < rows; ++row) {
    const T *gradient = p.gradient + row * width, *residual = p.residual + row * width, *x = p.x + row * width;
    T *result = p.result + row * width, *values = p.values + row * width;
    const C centre = p.mean[row], factor = p.inverse_std[row];
    const C *weight = p.weight, *bias = p.bias;
    C *weight_gradient = p.sums, *bias_gradient = p.sums + width;
    C along_mean = 0, along_x = 0;
#pragma omp simd reduction(+ : along_mean, along_x)
    for (int64_t i = 0; i < width; ++i) {
      const C dy = load(gradient[i]), unit = (load(x[i]) - centre) * factor, through = dy * weight[i];
      along_mean += through;
      along_x += through * unit;
      weight_gradient[i] += dy * unit;
      bias_gradient[i] += dy;
    }
    along_mean /= static_cast<C>(width);
    along_x /= static_cast<C>(width);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const C unit = (load(x[i]) - centre) * factor;
      store(values[i], unit * weight[i] + bias[i]);
      store(result[i], load(residual[i]) + factor * (load(gradient[i]) * weight[i] - along_mean - unit * along_x));
    }
  }
}

CONTRASTIVE_VECTOR_CLONES void backward_rows(const BackwardRows<float>& part, int64_t rows, int64_t width) {
  backward_rows_body(part, rows, width);
}
CONTRASTIVE_VECTOR_CLONES void backward_rows(const BackwardRows<at::BFloat16>& part, int64_t rows, int64_t width) {
  backward_rows_body(part, rows, width);
}
void backward_rows(const BackwardRows<double>& part, int64_t rows, int64_t width) {
  backward_rows_body(part, rows, width);
}

}  // namespace

NormalizedRows layer_norm(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias, double eps) {
  const auto [values, mean, inverse_std] = at::native_layer_norm(x, {x.size(1)}, weight, bias, eps);
  return {values, mean.flatten(), inverse_std.flatten()};
}

LayerNormGradient layer_norm_backward(const torch::Tensor& gradient, const torch::Tensor& residual,
                                      const torch::Tensor& x, const torch::Tensor& mean,
                                      const torch::Tensor& inverse_std, const torch::Tensor& weight,
                                      const torch::Tensor& bias) {
  RECORD_USER_SCOPE("contrastive::layer_norm_backward");
  detail::check_matrix("layer_norm_backward", x);
  detail::check_same("layer_norm_backward", "gradient", gradient, x);
  detail::check_same("layer_norm_backward", "residual", residual, x);
  detail::check_vector("layer_norm_backward", "weight", weight, x);
  detail::check_vector("layer_norm_backward", "bias", bias, x);
  const auto rows = x.size(0), width = x.size(1);
  const auto sums = at::empty({2, width}, weight.options().requires_grad(false));
  LayerNormGradient result{at::empty_like(x), sums[0], sums[1], at::empty_like(x)};
  DISPATCH_STORAGE(x.scalar_type(), "layer_norm_backward", [&] {
    using C = Compute<scalar_t>;
    const auto work = [&](int64_t begin, int64_t end, C* part_sums) {
      const auto place = begin * width;
      const BackwardRows<scalar_t> part{.gradient = gradient.const_data_ptr<scalar_t>() + place,
                                        .residual = residual.const_data_ptr<scalar_t>() + place,
                                        .x = x.const_data_ptr<scalar_t>() + place,
                                        .mean = mean.const_data_ptr<C>() + begin,
                                        .inverse_std = inverse_std.const_data_ptr<C>() + begin,
                                        .weight = weight.const_data_ptr<C>(),
                                        .bias = bias.const_data_ptr<C>(),
                                        .result = result.x.mutable_data_ptr<scalar_t>() + place,
                                        .values = result.values.mutable_data_ptr<scalar_t>() + place,
                                        .sums = part_sums};
      backward_rows(part, end - begin, width);
    };
    detail::sum_row_parts(rows, 2 * width, sums.mutable_data_ptr<C>(), work);
  });
  return result;
}

}  // namespace contrastive::ops
