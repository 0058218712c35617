#include "models/attention.h"

#include <cmath>
#include <limits>
#include <optional>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/custom_function.h>

namespace contrastive::models::detail {
namespace {

// Up to here two plain products and a softmax beat ATen's flash kernel on the CPU, whose backward is slow.
constexpr int64_t kShortRow = 128;

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

/// Attention by batched matrix products with its own backward: one copy into head-major order each way, gradients of
/// q, k and v written straight into one buffer.
class ShortAttention : public torch::autograd::Function<ShortAttention> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& qkv, int64_t heads,
                               bool causal, const std::optional<torch::Tensor>& hidden) {
    const auto batch = qkv.size(0), tokens = qkv.size(1), width = qkv.size(2) / 3, head_width = width / heads;
    const auto packed = qkv.view({batch, tokens, 3, heads, head_width})
                            .permute({2, 0, 3, 1, 4})
                            .clone(at::MemoryFormat::Contiguous)
                            .view({3, batch * heads, tokens, head_width});
    const auto q = packed[0], k = packed[1], v = packed[2];
    q.mul_(attention_scale(head_width));
    const auto scores = q.bmm(k.transpose(1, 2));  // [B H, T, T]
    if (causal) scores.add_(at::full({tokens, tokens}, kMinusInfinity, scores.options()).triu_(1));
    if (hidden) scores.view({batch, heads, tokens, tokens}).masked_fill_(over_queries(*hidden), kMinusInfinity);
    const auto probabilities = scores.softmax(-1);
    context->save_for_backward({packed, probabilities});
    context->saved_data["heads"] = heads;
    return probabilities.bmm(v)
        .view({batch, heads, tokens, head_width})
        .transpose(1, 2)
        .reshape({batch, tokens, width});
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto& packed = saved[0];
    const auto& probabilities = saved[1];
    const auto heads = context->saved_data["heads"].toInt(), tokens = packed.size(2), head_width = packed.size(3);
    const auto batch = packed.size(1) / heads;
    const auto gradient = gradients[0]
                              .view({batch, tokens, heads, head_width})
                              .transpose(1, 2)
                              .reshape({batch * heads, tokens, head_width});

    const auto packed_gradient = at::empty_like(packed);
    auto dq = packed_gradient[0], dk = packed_gradient[1], dv = packed_gradient[2];
    at::bmm_out(dv, probabilities.transpose(1, 2), gradient);
    const auto dscores = at::_softmax_backward_data(gradient.bmm(packed[2].transpose(1, 2)), probabilities, -1,
                                                    probabilities.scalar_type());
    at::bmm_out(dq, dscores, packed[1]).mul_(attention_scale(head_width));
    at::bmm_out(dk, dscores.transpose(1, 2), packed[0]);
    const auto result = packed_gradient.view({3, batch, heads, tokens, head_width})
                            .permute({1, 3, 0, 2, 4})
                            .reshape({batch, tokens, 3 * heads * head_width});
    return {result, torch::Tensor(), torch::Tensor(), torch::Tensor()};
  }
};

}  // namespace

torch::Tensor packed_attention(const torch::Tensor& qkv, int64_t heads, bool causal, const torch::Tensor& hidden) {
  TORCH_CHECK(!causal || !hidden.defined(), "[attention] a causal mask and one of keys don't go together");
  const auto batch = qkv.size(0), tokens = qkv.size(1), width = qkv.size(2) / 3;
  if (qkv.is_cpu() && tokens <= kShortRow) {
    // Autograd's functions take no undefined tensors.
    return ShortAttention::apply(qkv, heads, causal,
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
