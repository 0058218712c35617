#include "contrastive/ops/matrix.h"

#include <optional>
#include <string_view>

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/Exception.h>

namespace contrastive::ops {
namespace {

using LinearPointwise = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                                   std::string_view, c10::List<std::optional<at::Scalar>>,
                                   std::optional<std::string_view>);

using ReorderWeight = at::Tensor(const at::Tensor&, std::optional<int64_t>);

/// One of oneDNN's operators by name; none in a build without oneDNN.
template <typename Signature>
std::optional<c10::TypedOperatorHandle<Signature>> onednn_operator(const char* name) {
  const auto found = c10::Dispatcher::singleton().findSchema({name, ""});
  if (!found || !at::globalContext().hasMKLDNN()) return std::nullopt;
  return found->typed<Signature>();
}

/// oneDNN's linear layer, which LibTorch has registered by name only.
const auto& onednn_linear() {
  static const auto handle = onednn_operator<LinearPointwise>("mkldnn::_linear_pointwise");
  return handle;
}

const auto& onednn_reorder() {
  static const auto handle = onednn_operator<ReorderWeight>("mkldnn::_reorder_linear_weight");
  return handle;
}

bool onednn_has_bf16() {
  static const bool result = [] {
    const auto handle = onednn_operator<bool()>("mkldnn::_is_mkldnn_bf16_supported");
    return handle && handle->call();
  }();
  return result;
}

/// a b^T by oneDNN.
torch::Tensor onednn_product(const torch::Tensor& a, const torch::Tensor& b) {
  return onednn_linear()->call(a, b, std::nullopt, "none", c10::List<std::optional<at::Scalar>>(), std::nullopt);
}

/// a b^T. Shapes: [N, K], [M, K], any strides, to [N, M].
torch::Tensor product(const torch::Tensor& a, const torch::Tensor& b) {
  const bool is_fp32 = a.is_cpu() && a.scalar_type() == at::kFloat && b.scalar_type() == at::kFloat;
  const bool is_empty = a.numel() == 0 || b.numel() == 0;
  if (!is_fp32 || is_empty || !at::globalContext().userEnabledMkldnn() || !onednn_linear()) return a.mm(b.t());
  return onednn_product(a, b);
}

}  // namespace

torch::Tensor linear_forward(const torch::Tensor& x, const torch::Tensor& weight) {
  return weight.is_mkldnn() ? onednn_product(x, weight) : product(x, weight);
}

torch::Tensor linear_input_gradient(const torch::Tensor& gradient, const torch::Tensor& weight) {
  return product(gradient, weight.t());
}

torch::Tensor linear_weight_gradient(const torch::Tensor& gradient, const torch::Tensor& x) {
  return product(gradient.t(), x.t());
}

bool can_pack(torch::ScalarType dtype) {
  if (!at::globalContext().userEnabledMkldnn() || !onednn_linear() || !onednn_reorder()) return false;
  return dtype == at::kFloat || (dtype == at::kBFloat16 && onednn_has_bf16());
}

torch::Tensor pack_weight(const torch::Tensor& weight) {
  TORCH_CHECK(weight.is_cpu() && can_pack(weight.scalar_type()),
              "[pack_weight] the weight must be one that oneDNN takes, but is ", weight.scalar_type(), " on ",
              weight.device());
  return onednn_reorder()->call(weight.contiguous(), std::nullopt);
}

}  // namespace contrastive::ops
