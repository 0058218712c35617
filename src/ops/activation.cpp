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
using detail::error_function;
using detail::exponential;
using detail::load;
using detail::store;

/// A value of the activation and of its derivative.
template <typename C>
struct Point {
  C value, slope;
};

template <typename C>
CONTRASTIVE_INLINE Point<C> sigmoid(C x) {
  const C power = exponential(-x), value = C(1) / (C(1) + power);
  return {value, value * (power * value)};  // 1 - value would lose digits
}

template <typename C>
CONTRASTIVE_INLINE Point<C> gelu(C x) {
  constexpr C kSqrtHalf = C(0.70710678118654752440), kDensityAt0 = C(0.39894228040143267794);
  const C below = C(0.5) * (C(1) + error_function(x * kSqrtHalf));  // of the normal distribution
  const C density = kDensityAt0 * exponential(C(-0.5) * x * x);
  return {x * below, below + x * density};
}

/// (1 + tanh u) / 2 = sigmoid(2 u), which loses no digits where tanh is near -1.
template <typename C>
CONTRASTIVE_INLINE Point<C> gelu_tanh(C x) {
  constexpr C kFactor = C(1.59576912160573071176), kCubic = C(0.044715);  // 2 sqrt(2 / pi)
  const auto s = sigmoid(kFactor * (x + kCubic * x * x * x));
  const C inner_slope = kFactor * (C(1) + C(3) * kCubic * x * x);
  return {x * s.value, s.value + x * s.slope * inner_slope};
}

template <typename C>
CONTRASTIVE_INLINE Point<C> quick_gelu(C x) {
  constexpr C kSlope = C(1.702);
  const auto s = sigmoid(kSlope * x);
  return {x * s.value, s.value + kSlope * x * s.slope};
}

template <Activation activation, typename C>
CONTRASTIVE_INLINE Point<C> point(C x) {
  if constexpr (activation == Activation::gelu) return gelu(x);
  if constexpr (activation == Activation::gelu_tanh) return gelu_tanh(x);
  if constexpr (activation == Activation::quick_gelu) return quick_gelu(x);
}

template <Activation activation, typename T>
CONTRASTIVE_INLINE void activate_rows_of(const T* x, const Compute<T>* bias, int64_t rows, int64_t width, T* result) {
  for (int64_t row = 0; row < rows; ++row, x += width, result += width) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) store(result[i], point<activation>(load(x[i]) + bias[i]).value);
  }
}

template <typename T>
CONTRASTIVE_INLINE void activate_rows_body(Activation activation, const T* x, const Compute<T>* bias, int64_t rows,
                                           int64_t width, T* result) {
  switch (activation) {
    case Activation::gelu:
      return activate_rows_of<Activation::gelu>(x, bias, rows, width, result);
    case Activation::gelu_tanh:
      return activate_rows_of<Activation::gelu_tanh>(x, bias, rows, width, result);
    case Activation::quick_gelu:
      return activate_rows_of<Activation::quick_gelu>(x, bias, rows, width, result);
  }
}

/// Of some rows: `gradient` becomes that of x; its column sums are added to `bias_gradient`.
template <Activation activation, typename T>
CONTRASTIVE_INLINE void backward_rows_of(T* gradient, const T* x, const Compute<T>* bias, int64_t rows, int64_t width,
                                         T* activated, Compute<T>* bias_gradient) {
  for (int64_t row = 0; row < rows; ++row, x += width, gradient += width, activated += width) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const auto at = point<activation>(load(x[i]) + bias[i]);
      const auto through = load(gradient[i]) * at.slope;
      store(activated[i], at.value);
      store(gradient[i], through);
      bias_gradient[i] += through;
    }
  }
}

template <typename T>
CONTRASTIVE_INLINE void backward_rows_body(Activation activation, T* gradient, const T* x, const Compute<T>* bias,
                                           int64_t rows, int64_t width, T* activated, Compute<T>* bias_gradient) {
  switch (activation) {
    case Activation::gelu:
      return backward_rows_of<Activation::gelu>(gradient, x, bias, rows, width, activated, bias_gradient);
    case Activation::gelu_tanh:
      return backward_rows_of<Activation::gelu_tanh>(gradient, x, bias, rows, width, activated, bias_gradient);
    case Activation::quick_gelu:
      return backward_rows_of<Activation::quick_gelu>(gradient, x, bias, rows, width, activated, bias_gradient);
  }
}

CONTRASTIVE_VECTOR_CLONES void activate_rows(Activation activation, const float* x, const float* bias, int64_t rows,
                                             int64_t width, float* result) {
  activate_rows_body(activation, x, bias, rows, width, result);
}
CONTRASTIVE_VECTOR_CLONES void activate_rows(Activation activation, const at::BFloat16* x, const float* bias,
                                             int64_t rows, int64_t width, at::BFloat16* result) {
  activate_rows_body(activation, x, bias, rows, width, result);
}
void activate_rows(Activation activation, const double* x, const double* bias, int64_t rows, int64_t width,
                   double* result) {
  activate_rows_body(activation, x, bias, rows, width, result);
}

CONTRASTIVE_VECTOR_CLONES void backward_rows(Activation activation, float* gradient, const float* x, const float* bias,
                                             int64_t rows, int64_t width, float* activated, float* bias_gradient) {
  backward_rows_body(activation, gradient, x, bias, rows, width, activated, bias_gradient);
}
CONTRASTIVE_VECTOR_CLONES void backward_rows(Activation activation, at::BFloat16* gradient, const at::BFloat16* x,
                                             const float* bias, int64_t rows, int64_t width, at::BFloat16* activated,
                                             float* bias_gradient) {
  backward_rows_body(activation, gradient, x, bias, rows, width, activated, bias_gradient);
}
void backward_rows(Activation activation, double* gradient, const double* x, const double* bias, int64_t rows,
                   int64_t width, double* activated, double* bias_gradient) {
  backward_rows_body(activation, gradient, x, bias, rows, width, activated, bias_gradient);
}

}  // namespace

bool has_kernels(const torch::Tensor& x) {
  const auto dtype = x.scalar_type();
  return x.is_cpu() && (dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16);
}

torch::ScalarType vector_dtype(const torch::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

torch::Tensor activate(Activation activation, const torch::Tensor& x, const torch::Tensor& bias) {
  RECORD_USER_SCOPE("contrastive::activation");
  detail::check_matrix("activate", x);
  detail::check_vector("activate", "bias", bias, x);
  const auto width = x.size(1);
  auto result = at::empty_like(x);
  DISPATCH_STORAGE(x.scalar_type(), "activate", [&] {
    const auto* in = x.const_data_ptr<scalar_t>();
    auto* out = result.mutable_data_ptr<scalar_t>();
    const auto* offsets = bias.const_data_ptr<Compute<scalar_t>>();
    detail::for_row_parts(x.size(0), [&](int64_t begin, int64_t end) {
      activate_rows(activation, in + begin * width, offsets, end - begin, width, out + begin * width);
    });
  });
  return result;
}

ActivationGradient activation_backward(Activation activation, const torch::Tensor& gradient, const torch::Tensor& x,
                                       const torch::Tensor& bias) {
  RECORD_USER_SCOPE("contrastive::activation_backward");
  detail::check_matrix("activation_backward", x);
  detail::check_same("activation_backward", "gradient", gradient, x);
  detail::check_vector("activation_backward", "bias", bias, x);
  const auto width = x.size(1);
  ActivationGradient result{at::empty_like(x), gradient, at::empty_like(bias)};
  DISPATCH_STORAGE(x.scalar_type(), "activation_backward", [&] {
    const auto* in = x.const_data_ptr<scalar_t>();
    auto* through = gradient.mutable_data_ptr<scalar_t>();
    auto* activated = result.activated.mutable_data_ptr<scalar_t>();
    const auto* offsets = bias.const_data_ptr<Compute<scalar_t>>();
    const auto work = [&](int64_t begin, int64_t end, Compute<scalar_t>* sums) {
      backward_rows(activation, through + begin * width, in + begin * width, offsets, end - begin, width,
                    activated + begin * width, sums);
    };
    detail::sum_row_parts(x.size(0), width, result.bias.mutable_data_ptr<Compute<scalar_t>>(), work);
  });
  return result;
}

}  // namespace contrastive::ops
