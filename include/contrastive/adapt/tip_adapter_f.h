#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "contrastive/adapt/adapter.h"
#include "contrastive/core/export.h"

namespace contrastive::adapt {

struct TipAdapterFOptions {
  int64_t epochs = 20;  ///< 0 leaves the keys as they are: Tip-Adapter
  int64_t batch_size = 256;
  double lr = 1e-3;  ///< at first; falls to 0 along half a cosine, step by step
  double eps = 1e-4;
  double weight_decay = 0.01;
  double alpha = 1.17;   ///< what keys are trained with, and the default
  double beta = 1;       ///< likewise
  double max_alpha = 3;  ///< the searched range's (excluded) end
  double max_beta = 7;
  int64_t seed = 0;  ///< of the order of samples
};

/// Tip-Adapter whose keys are trained on the support images, values and texts staying as they are:
/// scale * f . W^T + alpha * sum over j of class c of exp(-beta (1 - f . k_j)).
///
/// Keys begin as the support's; AdamW brings down the cross-entropy of the logits at the options' alpha and beta. An
/// epoch takes each support image once, in an order that is a function of seed and epoch: view e mod V of each in epoch
/// e, or the key itself where there are no views. Trained keys aren't normalised.
/// Source: Zhang et al., "Tip-Adapter: Training-Free Adaption of CLIP for Few-Shot Classification", ECCV 2022.
/// Deviates: the last epoch is taken (the published figures are those of the best one on the test images); views that
/// were made beforehand in place of fresh crops.
class CONTRASTIVE_API TipAdapterF : public Adapter {
 public:
  /// Throws: ConfigError naming the option that is out of range.
  explicit TipAdapterF(TipAdapterFOptions options = {});

  std::string name() const override { return "tip-adapter-f"; }

  /// As Tip-Adapter's: 200 betas and 20 alphas from .1 on.
  std::vector<Parameter> parameters() const override;
  std::map<std::string, std::string> settings() const override;

 protected:
  /// Throws: TrainingError if keys become infinite or NaN.
  void do_fit(const SupportFeatures& support, const TextClassifier& classifier) override;
  ScoreTerms terms(const QueryFeatures& tile, const ParameterValues& values) const override;
  void sweep_terms(const QueryFeatures& tile,
                   const std::function<void(int64_t shape_point, const ScoreTerms&)>& visit) const override;
  std::vector<std::pair<std::string, torch::Tensor*>> fitted() override;
  void check_fitted() const override;
  int64_t tile_rows() const override { return 64; }

 private:
  TipAdapterFOptions options_;
  torch::Tensor keys_;     ///< [M, D]
  torch::Tensor offsets_;  ///< [C + 1] int64, in CPU memory
};

/// The mean cross-entropy of some images, and what it asks of the keys.
struct CacheLoss {
  double loss = 0;
  torch::Tensor gradient;  ///< of the keys, [M, D]
};

/// The loss that keys are trained with, and its gradient in closed form. Shapes: cache.keys [M, D], which need not be
/// normalised; features [B, D]; labels [B] int64; zero_shot_logits [B, C]. One dtype, fp32 or fp64.
CONTRASTIVE_API CacheLoss cache_loss(const SupportFeatures& cache, const torch::Tensor& features,
                                     const torch::Tensor& labels, const torch::Tensor& zero_shot_logits, double alpha,
                                     double beta);

}  // namespace contrastive::adapt
