#pragma once

#include <ATen/core/Generator.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/models/layers.h"
#include "contrastive/models/transformer.h"

namespace contrastive::models {

/// Attention pooling with one learned query, followed by a residual MLP ("MAP head").
/// Source: Zhai et al. 2022, "Scaling Vision Transformers", section 3.2; the released code of SigLIP.
class CONTRASTIVE_API AttentionPoolLatentImpl : public torch::nn::Module {
 public:
  AttentionPoolLatentImpl(const TransformerOptions& options, torch::Device device);

  /// Shapes: x [B, P, D] to [B, D].
  torch::Tensor forward(const torch::Tensor& x) const;

  void reset_parameters(at::Generator& generator);

  torch::Tensor latent;  ///< [1, 1, D]
  Linear q{nullptr};
  Linear kv{nullptr};  ///< [2 D, D]: rows of k, v
  Linear proj{nullptr};
  LayerNorm norm{nullptr};
  Mlp mlp{nullptr};

 private:
  int64_t heads_;
};
TORCH_MODULE(AttentionPoolLatent);

}  // namespace contrastive::models
