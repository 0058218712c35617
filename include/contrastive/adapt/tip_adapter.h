#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "contrastive/adapt/adapter.h"
#include "contrastive/core/export.h"

namespace contrastive::adapt {

/// Defaults are those for ImageNet.
struct TipAdapterOptions {
  double max_alpha = 3;  ///< the searched range's (excluded) end
  double max_beta = 7;
  double alpha = 1.17;  ///< of the protocol fixed
  double beta = 1;
};

/// Similarities with the support images, as a cache: logits = 100 f . W^T + alpha * sum over a class's keys s of
/// exp(-beta (1 - f . s)). Source: Zhang et al. 2022 (Tip-Adapter), section 3; 200 betas and 20 alphas from 0.1 as its
/// code searches them.
class CONTRASTIVE_API TipAdapter : public Adapter {
 public:
  /// Throws: ConfigError if an option isn't above 0.1 (ranges) or 0.
  explicit TipAdapter(const TipAdapterOptions& options = {});

  std::string name() const override { return "tip-adapter"; }
  std::vector<Parameter> parameters() const override;
  std::map<std::string, std::string> settings() const override;

 protected:
  void do_fit(const SupportFeatures& support, const TextClassifier& classifier) override;
  ScoreTerms terms(const QueryFeatures& tile, const ParameterValues& values) const override;
  void sweep_terms(const QueryFeatures& tile,
                   const std::function<void(int64_t shape_point, const ScoreTerms&)>& visit) const override;
  std::vector<std::pair<std::string, torch::Tensor*>> fitted() override;
  void check_fitted() const override;
  int64_t tile_rows() const override { return 128; }

 private:
  TipAdapterOptions options_;
  torch::Tensor keys_;     ///< [M, D]
  torch::Tensor offsets_;  ///< [C + 1] int64
};

}  // namespace contrastive::adapt
