#pragma once

#include <optional>
#include <vector>

#include <torch/nn/module.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/models/layers.h"
#include "contrastive/models/precision.h"
#include "contrastive/ops/activation.h"

namespace contrastive::models {

using ops::Activation;

/// The activation of an open_clip config: quick_gelu wins over act_kwargs.
inline Activation activation_of(bool quick_gelu, bool gelu_tanh) {
  if (quick_gelu) return Activation::quick_gelu;
  return gelu_tanh ? Activation::gelu_tanh : Activation::gelu;
}

/// Shapes: any, to the same.
CONTRASTIVE_API torch::Tensor activate(Activation activation, const torch::Tensor& x);

/// x * sigmoid(1.702 x), OpenAI's approximation of GELU.
CONTRASTIVE_API torch::Tensor quick_gelu(const torch::Tensor& x);

struct TransformerOptions {
  int64_t width = 512;
  int64_t layers = 12;
  int64_t heads = 8;
  double mlp_ratio = 4.0;
  Activation activation = Activation::gelu;
  bool causal = false;  ///< a token sees itself and what stands before it
  double norm_eps = 1e-5;
  std::optional<double> ls_init_value = {};  ///< LayerScale after attention and MLP, with this start value

  /// Rounded down; a ratio that was computed from a width gives that width.
  int64_t mlp_width() const { return static_cast<int64_t>(static_cast<double>(width) * mlp_ratio + 1e-6); }
};

/// Multi-head self-attention with packed query, key and value weights. Letters: B batch, T tokens, D width.
class CONTRASTIVE_API AttentionImpl : public torch::nn::Module {
 public:
  AttentionImpl(const TransformerOptions& options, torch::Device device);

  /// Shapes: x [B, T, D] to [B, T, D].
  torch::Tensor forward(const torch::Tensor& x) const;

  /// The same for one row of each sample. Shapes: x [B, T, D], queries [B, D] (rows of x), positions [B] int64 (the
  /// places of these rows; only looked at if causal) to [B, D].
  torch::Tensor forward_pooled(const torch::Tensor& x, const torch::Tensor& queries,
                               const torch::Tensor& positions) const;

  /// x + forward(norm(x)), where detail::can_fuse says so. Shapes: x [B, T, D] to the same.
  torch::Tensor add_to(const torch::Tensor& x, const LayerNormImpl& norm) const;

  void reset_parameters(at::Generator& generator);

  ComputeCopy& in_proj_copy() const { return in_proj_copy_; }

  torch::Tensor in_proj_weight;  ///< [3 D, D]: rows of q, k, v
  torch::Tensor in_proj_bias;    ///< [3 D]
  Linear out_proj{nullptr};

 private:
  mutable ComputeCopy in_proj_copy_;
  int64_t heads_;
  bool causal_;
};
TORCH_MODULE(Attention);

/// Two linear layers with an activation between them.
class CONTRASTIVE_API MlpImpl : public torch::nn::Module {
 public:
  MlpImpl(const TransformerOptions& options, torch::Device device);

  torch::Tensor forward(const torch::Tensor& x) const;

  /// x + forward(norm(x)), where detail::can_fuse says so. Shapes: x [..., D] to the same.
  torch::Tensor add_to(const torch::Tensor& x, const LayerNormImpl& norm) const;

  void reset_parameters(at::Generator& generator);

  Linear c_fc{nullptr};
  Linear c_proj{nullptr};

 private:
  Activation activation_;
};
TORCH_MODULE(Mlp);

/// Pre-LN block: x += ls_1(attn(ln_1(x))); x += ls_2(mlp(ln_2(x))), each ls only if the options ask for it.
class CONTRASTIVE_API ResidualAttentionBlockImpl : public torch::nn::Module {
 public:
  ResidualAttentionBlockImpl(const TransformerOptions& options, torch::Device device);

  /// Shapes: x [B, T, D] to [B, T, D].
  torch::Tensor forward(const torch::Tensor& x) const;

  /// Row `positions[b]` of forward(x)[b], computed without the others. Shapes: x [B, T, D], positions [B] int64, or
  /// undefined for row 0, to [B, D].
  torch::Tensor forward_pooled(const torch::Tensor& x, const torch::Tensor& positions) const;

  void reset_parameters(at::Generator& generator);

  LayerNorm ln_1{nullptr};
  Attention attn{nullptr};
  LayerScale ls_1{nullptr};
  LayerNorm ln_2{nullptr};
  Mlp mlp{nullptr};
  LayerScale ls_2{nullptr};

 private:
  bool is_fused(const torch::Tensor& x) const;
  torch::Tensor add_mlp(const torch::Tensor& x) const;
};
TORCH_MODULE(ResidualAttentionBlock);

/// A stack of blocks. Source: Radford et al. 2021, section 2.4, and the released model code.
class CONTRASTIVE_API TransformerImpl : public torch::nn::Module {
 public:
  TransformerImpl(const TransformerOptions& options, torch::Device device);

  /// Shapes: x [B, T, D] to [B, T, D].
  torch::Tensor forward(torch::Tensor x) const;

  /// Row `positions[b]` of forward(x)[b]: the last block does only what this row needs. Shapes as in the block.
  torch::Tensor forward_pooled(torch::Tensor x, const torch::Tensor& positions) const;

  void reset_parameters(at::Generator& generator);

  const std::vector<ResidualAttentionBlock>& blocks() const { return blocks_; }

  /// Whether training steps keep only the input of each block and run it again in the backward pass.
  void checkpoint_activations(bool on) { checkpoint_ = on; }

  torch::nn::ModuleList resblocks;

 private:
  torch::Tensor run(const ResidualAttentionBlock& block, const torch::Tensor& x) const;

  std::vector<ResidualAttentionBlock> blocks_;
  bool checkpoint_ = false;
};
TORCH_MODULE(Transformer);

}  // namespace contrastive::models
