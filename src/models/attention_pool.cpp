#include "contrastive/models/attention_pool.h"

#include <cmath>
#include <numbers>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "models/attention.h"
#include "models/timm_init.h"

namespace contrastive::models {
namespace {

/// A normal distribution cut at two standard deviations.
void draw_truncated_normal(const torch::Tensor& values, double std, at::Generator& generator) {
  const double edge = std::erf(2.0 / std::numbers::sqrt2);
  values.uniform_(-edge, edge, generator).erfinv_().mul_(std * std::numbers::sqrt2);
}

}  // namespace

AttentionPoolLatentImpl::AttentionPoolLatentImpl(const TransformerOptions& options, torch::Device device)
    : heads_(options.heads) {
  const auto width = options.width;
  latent = register_parameter("latent", at::empty({1, 1, width}, device));
  q = register_module("q", Linear(width, width, device));
  kv = register_module("kv", Linear(width, 2 * width, device));
  proj = register_module("proj", Linear(width, width, device));
  norm = register_module("norm", LayerNorm(width, device, options.norm_eps));
  mlp = register_module("mlp", Mlp(options, device));
}

torch::Tensor AttentionPoolLatentImpl::forward(const torch::Tensor& x) const {
  const auto batch = x.size(0), width = x.size(2);
  const auto query = q->forward(latent.view({1, width})).expand({batch, width});
  const auto keys_values = kv->forward(x).split(width, -1);  // 2 x [B, P, D]
  const auto pooled =
      proj->forward(detail::single_query_attention(query, keys_values[0], keys_values[1], heads_, {}));  // [B, D]
  return pooled + mlp->forward(norm->forward(pooled));
}

void AttentionPoolLatentImpl::reset_parameters(at::Generator& generator) {
  const at::NoGradGuard no_grad;
  draw_truncated_normal(latent, 1.0 / std::sqrt(static_cast<double>(latent.size(2))), generator);
  for (auto* linear : {&q, &kv, &proj}) detail::draw_timm_linear(*linear, generator);
  norm->reset_parameters();
  detail::draw_timm_mlp(mlp, generator);
}

}  // namespace contrastive::models
