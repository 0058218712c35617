#pragma once

#include <ATen/core/Tensor.h>

/// Runs a lambda with scalar_t as the type of a storage dtype that we have kernels for.
#define DISPATCH_STORAGE(DTYPE, NAME, ...)                        \
  AT_DISPATCH_SWITCH(DTYPE, NAME,                                 \
                     AT_DISPATCH_CASE_FLOATING_TYPES(__VA_ARGS__) \
                         AT_DISPATCH_CASE(at::ScalarType::BFloat16, __VA_ARGS__))

namespace contrastive::ops::detail {

void check_matrix(const char* op, const at::Tensor& x);

/// A vector with a value for each column of x.
void check_vector(const char* op, const char* name, const at::Tensor& vector, const at::Tensor& x);

/// Shape and dtype.
void check_same(const char* op, const char* name, const at::Tensor& tensor, const at::Tensor& x);

}  // namespace contrastive::ops::detail
