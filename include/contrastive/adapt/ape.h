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

struct ApeOptions {
  int64_t dimensions = 0;             ///< how many of the features' dimensions are kept; 0 for half of them
  double inter_class_weight = 0.7;    ///< of the product between classes, which is to be small
  double text_variance_weight = 0.3;  ///< of the variance between the classes' texts, which is to be large
};

/// A cache of the support images on the feature dimensions that tell the classes apart:
/// scale * f . W^T + alpha * sum over j of class c of exp(-beta (1 - r . r_j)) v_j(gamma).
///
/// The dimensions kept have the highest -w0 * I_d + w1 * V_d (of equals the lower): I_d is the mean product of two
/// classes' means, text and keys together, in dimension d; V_d the variance of the text weights over classes (C - 1). r
/// are features on these dimensions, normalised again. A key's weight is v_j = exp(gamma * KL_j), with KL_j the
/// divergence in bits of the softmax of its cosines with the text weights, both on the dimensions kept and without a
/// temperature, from its one-hot label: log2((1 + 1e-6) / (p + 1e-6)).
/// Source: Zhu et al., "Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement", ICCV 2023.
/// Deviates: products between classes in closed form; classes of different sizes count alike; grids of our own.
class CONTRASTIVE_API Ape : public Adapter {
 public:
  /// Throws: ConfigError naming the option that is out of range.
  explicit Ape(ApeOptions options = {});

  std::string name() const override { return "ape"; }

  /// beta: .5 to 10 in steps of .5. gamma: 0 to .4 in steps of .1. alpha: .25 to 10 in steps of .25.
  std::vector<Parameter> parameters() const override;
  std::map<std::string, std::string> settings() const override;

  /// The dimensions that fit() has kept, rising. [q] int64
  const torch::Tensor& dimensions() const { return dimensions_; }

 protected:
  /// Throws: ConfigError if more dimensions are to be kept than there are.
  void do_fit(const SupportFeatures& support, const TextClassifier& classifier) override;
  ScoreTerms terms(const QueryFeatures& tile, const ParameterValues& values) const override;
  void sweep_terms(const QueryFeatures& tile,
                   const std::function<void(int64_t shape_point, const ScoreTerms&)>& visit) const override;
  std::vector<std::pair<std::string, torch::Tensor*>> fitted() override;
  void check_fitted() const override;
  int64_t tile_rows() const override { return 64; }

 private:
  ApeOptions options_;
  torch::Tensor dimensions_;   ///< [q] int64
  torch::Tensor keys_;         ///< [M, q], normalised
  torch::Tensor divergences_;  ///< [M]
  torch::Tensor offsets_;      ///< [C + 1] int64, in CPU memory
};

}  // namespace contrastive::adapt
