#include "models/fused_block.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "contrastive/models/precision.h"
#include "contrastive/ops/attention.h"
#include "contrastive/ops/elementwise.h"
#include "contrastive/ops/matrix.h"

#include "models/no_graph.h"

namespace contrastive::models::detail {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Shapes: [..., D] to [N, D], contiguous.
Tensor as_rows(const Tensor& x) {
  return x.contiguous().view({-1, x.size(-1)});
}

/// The gradients of a linear layer's weight, in the weight's dtype, or undefined if it needs none.
Tensor weight_gradient(bool needed, const Tensor& gradient, const Tensor& x, const Tensor& like) {
  return needed ? ops::linear_weight_gradient(gradient, x).to(like.scalar_type()) : Tensor();
}

/// Autograd's functions take tensors one by one: both halves in this order, the first and last linear layer as "in" and
/// "out".
enum Input { kX, kNormWeight, kNormBias, kInWeight, kInBias, kOutWeight, kOutBias };

/// What both halves keep first.
enum Saved { kRows, kSavedNormWeight, kSavedNormBias, kMean, kInverseStd, kSavedInWeight, kInCopy };

/// What both backward passes end with: from the gradient of the first linear layer's result, and that of the half's, to
/// those of the layer's weight, the normalisation and x.
void finish_backward(AutogradContext* context, const variable_list& saved, const Tensor& within, const Tensor& around,
                     at::IntArrayRef sizes, variable_list& result) {
  const auto through =
      ops::layer_norm_backward(ops::linear_input_gradient(within, saved[kInCopy]), around, saved[kRows], saved[kMean],
                               saved[kInverseStd], saved[kSavedNormWeight], saved[kSavedNormBias]);
  result[kInWeight] =
      weight_gradient(context->needs_input_grad(kInWeight), within, through.values, saved[kSavedInWeight]);
  result[kX] = through.x.view(sizes);
  result[kNormWeight] = through.weight;
  result[kNormBias] = through.bias;
}

class AttentionHalf : public torch::autograd::Function<AttentionHalf> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias,
                        const Tensor& in_weight, const Tensor& in_bias, const Tensor& out_weight,
                        const Tensor& out_bias, const Tensor& in_copy, const Tensor& out_copy, double eps,
                        int64_t heads, bool causal) {
    const auto rows = as_rows(x);
    const auto shape = ops::AttentionShape{x.size(0), x.size(1), heads, causal};
    const auto normed = ops::layer_norm(rows, norm_weight, norm_bias, eps);
    const auto attended = ops::attention(ops::linear_forward(normed.values, in_copy), in_bias, shape);
    const auto result = ops::add_residual(rows, ops::linear_forward(attended.values, out_copy), out_bias);
    const auto& state = attended.state;
    context->save_for_backward({rows, norm_weight, norm_bias, normed.mean, normed.inverse_std, in_weight, in_copy,
                                out_weight, out_copy, attended.values, state.packed, state.probabilities, state.result,
                                state.log_sums});
    context->saved_data["shape"] = std::vector<int64_t>{shape.batch, shape.tokens, shape.heads, shape.causal};
    return result.view(x.sizes());
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    require_no_graph("transformer block");
    const auto saved = context->get_saved_variables();
    const auto &out_weight = saved[7], &out_copy = saved[8], &attended = saved[9];
    const ops::AttentionState state{saved[10], saved[11], saved[12], saved[13]};
    const auto sizes = context->saved_data["shape"].toIntVector();
    const auto gradient = as_rows(gradients[0]);
    variable_list result(kNumInputs);
    result[kOutWeight] = weight_gradient(context->needs_input_grad(kOutWeight), gradient, attended, out_weight);
    result[kOutBias] = ops::column_sums(gradient);
    const auto within = ops::attention_backward(ops::linear_input_gradient(gradient, out_copy),
                                                {sizes[0], sizes[1], sizes[2], sizes[3] != 0}, state);
    result[kInBias] = within.bias;
    finish_backward(context, saved, within.qkv, gradient, gradients[0].sizes(), result);
    return result;
  }

 private:
  static constexpr size_t kNumInputs = 12;
};

class MlpHalf : public torch::autograd::Function<MlpHalf> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias,
                        const Tensor& fc_weight, const Tensor& fc_bias, const Tensor& proj_weight,
                        const Tensor& proj_bias, const Tensor& fc_copy, const Tensor& proj_copy, double eps,
                        int64_t activation) {
    const auto rows = as_rows(x);
    const auto normed = ops::layer_norm(rows, norm_weight, norm_bias, eps);
    const auto hidden = ops::linear_forward(normed.values, fc_copy);
    const auto activated = ops::activate(static_cast<ops::Activation>(activation), hidden, fc_bias);
    const auto result = ops::add_residual(rows, ops::linear_forward(activated, proj_copy), proj_bias);
    context->save_for_backward({rows, norm_weight, norm_bias, normed.mean, normed.inverse_std, fc_weight, fc_copy,
                                fc_bias, proj_weight, proj_copy, hidden});
    context->saved_data["activation"] = activation;
    return result.view(x.sizes());
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    require_no_graph("transformer block");
    const auto saved = context->get_saved_variables();
    const auto &fc_bias = saved[7], &proj_weight = saved[8], &proj_copy = saved[9], &hidden = saved[10];
    const auto gradient = as_rows(gradients[0]);
    variable_list result(kNumInputs);
    result[kOutBias] = ops::column_sums(gradient);
    const auto within =
        ops::activation_backward(static_cast<ops::Activation>(context->saved_data["activation"].toInt()),
                                 ops::linear_input_gradient(gradient, proj_copy), hidden, fc_bias);
    result[kOutWeight] =
        weight_gradient(context->needs_input_grad(kOutWeight), gradient, within.activated, proj_weight);
    result[kInBias] = within.bias;
    finish_backward(context, saved, within.x, gradient, gradients[0].sizes(), result);
    return result;
  }

 private:
  static constexpr size_t kNumInputs = 11;
};

}  // namespace

bool can_fuse(const Tensor& x, const Tensor& parameter) {
  return ops::has_kernels(x) && x.numel() > 0 && x.scalar_type() == compute_dtype(x) &&
         parameter.scalar_type() == ops::vector_dtype(x);
}

Tensor fused_attention_half(const Tensor& x, const FusedNorm& norm, const FusedLinear& in_proj,
                            const FusedLinear& out_proj, int64_t heads, bool causal) {
  return AttentionHalf::apply(x, norm.weight, norm.bias, in_proj.weight, in_proj.bias, out_proj.weight, out_proj.bias,
                              in_proj.weight_copy, out_proj.weight_copy, norm.eps, heads, causal);
}

Tensor fused_mlp_half(const Tensor& x, const FusedNorm& norm, const FusedLinear& c_fc, const FusedLinear& c_proj,
                      ops::Activation activation) {
  return MlpHalf::apply(x, norm.weight, norm.bias, c_fc.weight, c_fc.bias, c_proj.weight, c_proj.bias, c_fc.weight_copy,
                        c_proj.weight_copy, norm.eps, static_cast<int64_t>(activation));
}

}  // namespace contrastive::models::detail
