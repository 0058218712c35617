#include "contrastive/ops/matrix.h"

#include <optional>
#include <string_view>

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>

namespace contrastive::ops {
namespace {

using LinearPointwise = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                                   std::string_view, c10::List<std::optional<at::Scalar>>,
                                   std::optional<std::string_view>);

/// oneDNN's linear layer, which LibTorch has registered by name only; none in a build without oneDNN.
const std::optional<c10::TypedOperatorHandle<LinearPointwise>>& onednn_linear() {
  static const auto handle = []() -> std::optional<c10::TypedOperatorHandle<LinearPointwise>> {
    const auto found = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    if (!found || !at::globalContext().hasMKLDNN()) return std::nullopt;
    return found->typed<LinearPointwise>();
  }();
  return handle;
}

/// a b^T. Shapes: [N, K], [M, K], any strides, to [N, M].
torch::Tensor product(const torch::Tensor& a, const torch::Tensor& b) {
  const bool is_fp32 = a.is_cpu() && a.scalar_type() == at::kFloat && b.scalar_type() == at::kFloat;
  const bool is_empty = a.numel() == 0 || b.numel() == 0;
  if (!is_fp32 || is_empty || !at::globalContext().userEnabledMkldnn() || !onednn_linear()) return a.mm(b.t());
  return onednn_linear()->call(a, b, std::nullopt, "none", c10::List<std::optional<at::Scalar>>(), std::nullopt);
}

}  // namespace

torch::Tensor linear_forward(const torch::Tensor& x, const torch::Tensor& weight) {
  return product(x, weight);
}

torch::Tensor linear_input_gradient(const torch::Tensor& gradient, const torch::Tensor& weight) {
  return product(gradient, weight.t());
}

torch::Tensor linear_weight_gradient(const torch::Tensor& gradient, const torch::Tensor& x) {
  return product(gradient.t(), x.t());
}

}  // namespace contrastive::ops
