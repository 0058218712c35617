#include "ops/check_tensors.h"

#include <c10/util/Exception.h>

#include "contrastive/ops/elementwise.h"

namespace contrastive::ops::detail {

void check_matrix(const char* op, const at::Tensor& x) {
  TORCH_CHECK(has_kernels(x) && x.dim() == 2 && x.is_contiguous(), "[", op,
              "] expected a contiguous matrix of fp32, fp64 or bf16 in CPU memory, found ", x.sizes(), " ",
              x.scalar_type(), " on ", x.device());
}

void check_vector(const char* op, const char* name, const at::Tensor& vector, const at::Tensor& x) {
  TORCH_CHECK(vector.is_cpu() && vector.dim() == 1 && vector.size(0) == x.size(1) && vector.is_contiguous() &&
                  vector.scalar_type() == vector_dtype(x),
              "[", op, "] ", name, " must be a contiguous [", x.size(1), "] of ", vector_dtype(x),
              " in CPU memory, but is ", vector.sizes(), " ", vector.scalar_type(), " on ", vector.device());
}

void check_same(const char* op, const char* name, const at::Tensor& tensor, const at::Tensor& x) {
  TORCH_CHECK(tensor.is_cpu() && tensor.sizes() == x.sizes() && tensor.scalar_type() == x.scalar_type() &&
                  tensor.is_contiguous(),
              "[", op, "] ", name, " must be a contiguous ", x.sizes(), " ", x.scalar_type(), " in CPU memory, but is ",
              tensor.sizes(), " ", tensor.scalar_type(), " on ", tensor.device());
}

}  // namespace contrastive::ops::detail
