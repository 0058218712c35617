#include "contrastive/models/transformer.h"

#include <cmath>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "models/attention.h"
#include "models/checkpoint.h"
#include "models/fused_block.h"

namespace contrastive::models {
namespace {

/// x * sigmoid(a x) = silu(a x) / a: two fused passes each way, and only x is kept for the backward pass.
class QuickGelu : public torch::autograd::Function<QuickGelu> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& x) {
    context->save_for_backward({x});
    auto result = x * kSlope;
    return at::silu_(result).mul_(1.0 / kSlope);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    return {at::silu_backward(gradients[0], context->get_saved_variables()[0] * kSlope)};
  }

 private:
  static constexpr double kSlope = 1.702;
};

/// Row positions[b] of every sample. Shapes: x [B, T, D], positions [B] or undefined (row 0), to [B, D].
torch::Tensor pick_rows(const torch::Tensor& x, const torch::Tensor& positions) {
  if (!positions.defined()) return x.select(1, 0);
  return x.gather(1, positions.view({-1, 1, 1}).expand({-1, 1, x.size(2)})).squeeze(1);
}

}  // namespace

torch::Tensor quick_gelu(const torch::Tensor& x) {
  return QuickGelu::apply(x);
}

torch::Tensor activate(Activation activation, const torch::Tensor& x) {
  if (activation == Activation::quick_gelu) return quick_gelu(x);
  return at::gelu(x, activation == Activation::gelu_tanh ? "tanh" : "none");
}

AttentionImpl::AttentionImpl(const TransformerOptions& options, torch::Device device)
    : heads_(options.heads), causal_(options.causal) {
  in_proj_weight = register_parameter("in_proj_weight", at::empty({3 * options.width, options.width}, device));
  in_proj_bias = register_parameter("in_proj_bias", at::empty({3 * options.width}, device));
  out_proj = register_module("out_proj", Linear(options.width, options.width, device));
}

torch::Tensor AttentionImpl::forward(const torch::Tensor& x) const {
  const auto qkv = at::linear(x, in_proj_weight, in_proj_bias);  // [B, T, 3 D]
  return out_proj->forward(detail::packed_attention(qkv, heads_, causal_));
}

torch::Tensor AttentionImpl::add_to(const torch::Tensor& x, const LayerNormImpl& norm) const {
  const auto dtype = x.scalar_type();
  const auto in_copy = in_proj_copy_.of(in_proj_weight, dtype);
  return detail::fused_attention_half(x, {norm.weight, norm.bias, norm.eps()}, {in_proj_weight, in_proj_bias, in_copy},
                                      {out_proj->weight, out_proj->bias, out_proj->weight_as(dtype)}, heads_, causal_);
}

torch::Tensor AttentionImpl::forward_pooled(const torch::Tensor& x, const torch::Tensor& queries,
                                            const torch::Tensor& positions) const {
  const auto width = x.size(2);
  const auto project = [&](const torch::Tensor& rows, int64_t begin, int64_t size) {
    return at::linear(rows, in_proj_weight.narrow(0, begin, size), in_proj_bias.narrow(0, begin, size));
  };
  const auto q = project(queries, 0, width);                      // [B, D]
  const auto kv = project(x, width, 2 * width).split(width, -1);  // 2 x [B, T, D]
  const auto last_key = causal_ ? positions : torch::Tensor();
  return out_proj->forward(detail::single_query_attention(q, kv[0], kv[1], heads_, last_key));
}

void AttentionImpl::reset_parameters(at::Generator& generator) {
  const at::NoGradGuard no_grad;
  // Xavier-uniform over the packed matrix, as torch::nn::MultiheadAttention does.
  const double bound = std::sqrt(6.0 / static_cast<double>(in_proj_weight.size(0) + in_proj_weight.size(1)));
  in_proj_weight.uniform_(-bound, bound, generator);
  in_proj_bias.zero_();
  out_proj->reset_parameters(generator);
  out_proj->bias.zero_();
}

MlpImpl::MlpImpl(const TransformerOptions& options, torch::Device device) : activation_(options.activation) {
  c_fc = register_module("c_fc", Linear(options.width, options.mlp_width(), device));
  c_proj = register_module("c_proj", Linear(options.mlp_width(), options.width, device));
}

torch::Tensor MlpImpl::forward(const torch::Tensor& x) const {
  return c_proj->forward(activate(activation_, c_fc->forward(x)));
}

torch::Tensor MlpImpl::add_to(const torch::Tensor& x, const LayerNormImpl& norm) const {
  const auto dtype = x.scalar_type();
  return detail::fused_mlp_half(x, {norm.weight, norm.bias, norm.eps()},
                                {c_fc->weight, c_fc->bias, c_fc->weight_as(dtype)},
                                {c_proj->weight, c_proj->bias, c_proj->weight_as(dtype)}, activation_);
}

void MlpImpl::reset_parameters(at::Generator& generator) {
  c_fc->reset_parameters(generator);
  c_proj->reset_parameters(generator);
}

ResidualAttentionBlockImpl::ResidualAttentionBlockImpl(const TransformerOptions& options, torch::Device device) {
  ln_1 = register_module("ln_1", LayerNorm(options.width, device, options.norm_eps));
  attn = register_module("attn", Attention(options, device));
  if (options.ls_init_value) {
    ls_1 = register_module("ls_1", LayerScale(options.width, *options.ls_init_value, device));
  }
  ln_2 = register_module("ln_2", LayerNorm(options.width, device, options.norm_eps));
  mlp = register_module("mlp", Mlp(options, device));
  if (options.ls_init_value) {
    ls_2 = register_module("ls_2", LayerScale(options.width, *options.ls_init_value, device));
  }
}

/// LayerScale comes between a half and its sum.
bool ResidualAttentionBlockImpl::is_fused(const torch::Tensor& x) const {
  const auto fits = [&](const torch::Tensor& parameter) { return detail::can_fuse(x, parameter); };
  return !ls_1 && fits(ln_1->weight) && fits(attn->in_proj_weight) && fits(attn->out_proj->weight) &&
         fits(ln_2->weight) && fits(mlp->c_fc->weight) && fits(mlp->c_proj->weight);
}

torch::Tensor ResidualAttentionBlockImpl::forward(const torch::Tensor& x) const {
  if (is_fused(x)) return add_mlp(attn->add_to(x, *ln_1));
  const auto attended = attn->forward(ln_1->forward(x));
  return add_mlp(x + (ls_1 ? ls_1->forward(attended) : attended));
}

torch::Tensor ResidualAttentionBlockImpl::add_mlp(const torch::Tensor& x) const {
  if (is_fused(x)) return mlp->add_to(x, *ln_2);
  const auto hidden = mlp->forward(ln_2->forward(x));
  return x + (ls_2 ? ls_2->forward(hidden) : hidden);
}

torch::Tensor ResidualAttentionBlockImpl::forward_pooled(const torch::Tensor& x, const torch::Tensor& positions) const {
  const auto normed = ln_1->forward(x);
  const auto attended = attn->forward_pooled(normed, pick_rows(normed, positions), positions);  // [B, D]
  return add_mlp(pick_rows(x, positions) + (ls_1 ? ls_1->forward(attended) : attended));
}

void ResidualAttentionBlockImpl::reset_parameters(at::Generator& generator) {
  ln_1->reset_parameters();
  attn->reset_parameters(generator);
  ln_2->reset_parameters();
  mlp->reset_parameters(generator);
  if (ls_1) ls_1->reset_parameters();
  if (ls_2) ls_2->reset_parameters();
}

TransformerImpl::TransformerImpl(const TransformerOptions& options, torch::Device device) {
  register_module("resblocks", resblocks);
  for (int64_t i = 0; i < options.layers; ++i) {
    blocks_.emplace_back(options, device);
    resblocks->push_back(blocks_.back());
  }
}

torch::Tensor TransformerImpl::run(const ResidualAttentionBlock& block, const torch::Tensor& x) const {
  return detail::run_block(checkpoint_, *block, x, [block](const torch::Tensor& y) { return block->forward(y); });
}

torch::Tensor TransformerImpl::forward(torch::Tensor x) const {
  for (const auto& block : blocks_) x = run(block, x);
  return x;
}

torch::Tensor TransformerImpl::forward_pooled(torch::Tensor x, const torch::Tensor& positions) const {
  for (size_t i = 0; i + 1 < blocks_.size(); ++i) x = run(blocks_[i], x);
  const auto& last = blocks_.back();
  return detail::run_block(checkpoint_, *last, x,
                           [last, positions](const torch::Tensor& y) { return last->forward_pooled(y, positions); });
}

void TransformerImpl::reset_parameters(at::Generator& generator) {
  for (auto& block : blocks_) block->reset_parameters(generator);
}

}  // namespace contrastive::models
