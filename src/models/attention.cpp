#include "models/attention.h"

#include <cmath>
#include <limits>
#include <optional>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/custom_function.h>

#include "contrastive/ops/attention.h"
#include "contrastive/ops/elementwise.h"

#include "models/no_graph.h"

namespace contrastive::models::detail {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

double attention_scale(int64_t head_width) {
  return 1.0 / std::sqrt(static_cast<double>(head_width));
}

/// The mask of keys as scores of all heads and queries take it. Shapes: hidden [B, T] to [B, 1, 1, T].
torch::Tensor over_queries(const torch::Tensor& hidden) {
  return hidden.unsqueeze(1).unsqueeze(1);
}

/// The mask without samples whose keys are all hidden, which have no softmax. Shapes: [B, T] to the same.
torch::Tensor with_a_visible_key(const torch::Tensor& hidden) {
  return hidden.logical_and(hidden.all(1, /*keepdim=*/true).logical_not());
}

/// Attention by our own kernels, with their backward pass.
class KernelAttention : public torch::autograd::Function<KernelAttention> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& qkv, int64_t heads,
                               bool causal, const std::optional<torch::Tensor>& hidden) {
    const ops::AttentionShape shape{qkv.size(0), qkv.size(1), heads, causal};
    const auto keys = hidden.value_or(torch::Tensor());
    const auto result = ops::attention(qkv.contiguous().view({-1, qkv.size(2)}), {}, shape, keys);
    const auto& state = result.state;
    context->save_for_backward({state.packed, state.probabilities, state.result, state.log_sums, keys});
    context->saved_data["shape"] = std::vector<int64_t>{shape.batch, shape.tokens, shape.heads, shape.causal};
    return result.values.view({shape.batch, shape.tokens, -1});
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    require_no_graph("attention");
    const auto saved = context->get_saved_variables();
    const auto sizes = context->saved_data["shape"].toIntVector();
    const ops::AttentionShape shape{sizes[0], sizes[1], sizes[2], sizes[3] != 0};
    const auto gradient = gradients[0].contiguous();
    const auto result = ops::attention_backward(gradient.view({-1, gradient.size(2)}), shape,
                                                {saved[0], saved[1], saved[2], saved[3]}, saved[4]);
    return {result.qkv.view({shape.batch, shape.tokens, -1}), torch::Tensor(), torch::Tensor(), torch::Tensor()};
  }
};

}  // namespace

torch::Tensor packed_attention(const torch::Tensor& qkv, int64_t heads, bool causal, const torch::Tensor& hidden) {
  TORCH_CHECK(!causal || !hidden.defined(), "[attention] a causal mask and one of keys don't go together");
  const auto batch = qkv.size(0), tokens = qkv.size(1), width = qkv.size(2) / 3;
  if (ops::has_kernels(qkv) && qkv.numel() > 0) {
    // Autograd's functions take no undefined tensors.
    return KernelAttention::apply(qkv, heads, causal,
                                  hidden.defined() ? std::optional(with_a_visible_key(hidden)) : std::nullopt);
  }
  const auto parts = qkv.view({batch, tokens, 3, heads, width / heads}).permute({2, 0, 3, 1, 4}).unbind(0);
  std::optional<torch::Tensor> mask;
  if (hidden.defined()) {
    mask = over_queries(with_a_visible_key(hidden).logical_not()).expand({batch, heads, tokens, tokens});
  }
  return at::scaled_dot_product_attention(parts[0], parts[1], parts[2], mask, 0.0, causal)
      .transpose(1, 2)
      .reshape({batch, tokens, width});
}

torch::Tensor single_query_attention(const torch::Tensor& query, const torch::Tensor& keys, const torch::Tensor& values,
                                     int64_t heads, const torch::Tensor& last_key, const torch::Tensor& hidden) {
  const auto batch = keys.size(0), tokens = keys.size(1), width = keys.size(2), head_width = width / heads;
  const auto by_head = [&](const torch::Tensor& x) {
    return x.view({batch, x.dim() == 2 ? 1 : tokens, heads, head_width}).transpose(1, 2);  // [B, H, T, D / H]
  };
  auto scores = at::matmul(by_head(query * attention_scale(head_width)), by_head(keys).transpose(2, 3));
  if (last_key.defined()) {
    const auto is_behind = at::arange(tokens, last_key.options()) > last_key.unsqueeze(1);  // [B, T]
    scores = scores.masked_fill(over_queries(is_behind), kMinusInfinity);
  }
  if (hidden.defined()) scores = scores.masked_fill(over_queries(with_a_visible_key(hidden)), kMinusInfinity);
  const auto at_least_fp32 = at::promote_types(scores.scalar_type(), at::kFloat);
  const auto probabilities = scores.softmax(-1, at_least_fp32).to(values.scalar_type());
  return at::matmul(probabilities, by_head(values)).reshape({batch, width});
}

}  // namespace contrastive::models::detail
