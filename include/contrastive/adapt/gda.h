#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "contrastive/adapt/adapter.h"
#include "contrastive/core/export.h"

namespace contrastive::adapt {

/// Gaussian discriminant analysis beside the text classifier: scale * f . W^T + alpha (f . w + b).
///
/// Each view of a support image is a sample. With class means mu_c, the covariance S of all n samples around the mean
/// of their class, and the precision P = D ((n - 1) S + tr(S) I)^-1: w_c = P mu_c, b_c = log(1 / C) - .5 mu_c . w_c.
/// Where no sample differs from its class's mean (a single view a class), nothing is known of S, and P = D I: the
/// nearest class mean.
/// Source: Wang et al., "A Hard-to-Beat Baseline for Training-Free CLIP-Based Adaptation", ICLR 2024. Deviates: the
/// inverse by Cholesky in fp64, where the reference has a pseudo-inverse.
class CONTRASTIVE_API Gda : public Adapter {
 public:
  std::string name() const override { return "gda"; }

  /// alpha: the powers of ten from 10^-4 to 10^2.
  std::vector<Parameter> parameters() const override;

 protected:
  void do_fit(const SupportFeatures& support, const TextClassifier& classifier) override;
  ScoreTerms terms(const QueryFeatures& tile, const ParameterValues& values) const override;
  std::vector<std::pair<std::string, torch::Tensor*>> fitted() override;
  void check_fitted() const override;
  int64_t tile_rows() const override { return 2048; }

 private:
  torch::Tensor gaussian_weights_;  ///< [C, D]
  torch::Tensor gaussian_bias_;     ///< [C]
};

}  // namespace contrastive::adapt
