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

template <typename T>
CONTRASTIVE_INLINE void add_rows_body(const T* x, const Compute<T>* bias, int64_t rows, int64_t width, T* y) {
  for (int64_t row = 0; row < rows; ++row, x += width, y += width) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) store(y[i], load(x[i]) + (load(y[i]) + bias[i]));
  }
}

template <typename T>
CONTRASTIVE_INLINE void sum_rows_body(const T* x, int64_t rows, int64_t width, Compute<T>* sums) {
  for (int64_t row = 0; row < rows; ++row, x += width) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) sums[i] += load(x[i]);
  }
}

CONTRASTIVE_VECTOR_CLONES void add_rows(const float* x, const float* bias, int64_t rows, int64_t width, float* y) {
  add_rows_body(x, bias, rows, width, y);
}
CONTRASTIVE_VECTOR_CLONES void add_rows(const at::BFloat16* x, const float* bias, int64_t rows, int64_t width,
                                        at::BFloat16* y) {
  add_rows_body(x, bias, rows, width, y);
}
void add_rows(const double* x, const double* bias, int64_t rows, int64_t width, double* y) {
  add_rows_body(x, bias, rows, width, y);
}

CONTRASTIVE_VECTOR_CLONES void sum_rows(const float* x, int64_t rows, int64_t width, float* sums) {
  sum_rows_body(x, rows, width, sums);
}
CONTRASTIVE_VECTOR_CLONES void sum_rows(const at::BFloat16* x, int64_t rows, int64_t width, float* sums) {
  sum_rows_body(x, rows, width, sums);
}
void sum_rows(const double* x, int64_t rows, int64_t width, double* sums) {
  sum_rows_body(x, rows, width, sums);
}

}  // namespace

torch::Tensor add_residual(const torch::Tensor& x, const torch::Tensor& y, const torch::Tensor& bias) {
  RECORD_USER_SCOPE("contrastive::add_residual");
  detail::check_matrix("add_residual", x);
  detail::check_same("add_residual", "y", y, x);
  detail::check_vector("add_residual", "bias", bias, x);
  const auto width = x.size(1);
  DISPATCH_STORAGE(x.scalar_type(), "add_residual", [&] {
    const auto* in = x.const_data_ptr<scalar_t>();
    auto* out = y.mutable_data_ptr<scalar_t>();
    detail::for_row_parts(x.size(0), [&](int64_t begin, int64_t end) {
      add_rows(in + begin * width, bias.const_data_ptr<Compute<scalar_t>>(), end - begin, width, out + begin * width);
    });
  });
  return y;
}

torch::Tensor column_sums(const torch::Tensor& x) {
  RECORD_USER_SCOPE("contrastive::column_sums");
  detail::check_matrix("column_sums", x);
  const auto width = x.size(1);
  auto result = at::empty({width}, x.options().dtype(vector_dtype(x)));
  DISPATCH_STORAGE(x.scalar_type(), "column_sums", [&] {
    const auto* in = x.const_data_ptr<scalar_t>();
    detail::sum_row_parts(x.size(0), width, result.mutable_data_ptr<Compute<scalar_t>>(),
                          [&](int64_t begin, int64_t end, Compute<scalar_t>* sums) {
                            sum_rows(in + begin * width, end - begin, width, sums);
                          });
  });
  return result;
}

}  // namespace contrastive::ops
