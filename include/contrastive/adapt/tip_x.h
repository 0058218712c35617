#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "contrastive/adapt/adapter.h"
#include "contrastive/core/export.h"

namespace contrastive::adapt {

/// How divergences are brought to the scale of affinities.
enum class Psi {
  range,  ///< linearly, from the range of the divergences to that of the affinities (see TipX::observe)
  none,   ///< not at all
};

/// What becomes of a class's keys.
enum class Aggregate {
  mean,  ///< their mean, times the mean number of keys a class: classes with more keys have no advantage
  sum,   ///< their sum, as published; the same for balanced support sets
};

struct TipXOptions {
  double tau = 0.5;  ///< temperature of the signatures, on plain cosines
  Psi psi = Psi::range;
  Aggregate aggregate = Aggregate::mean;
};

/// Images compared by their similarities with the class texts: with signatures p = softmax(f . W^T / tau) and
/// M_ij = KL(p_i || q_j) of image i and key j,
///
///     logits = 100 f . W^T + alpha exp(-beta (1 - A)) L + gamma (-psi(M)) L,   A = f . S^T, L: the keys' classes.
///
/// Source: Udandarao et al. 2023 (SuS-X), section 3.2; the search's ranges are its code's. Deviates: divergences in
/// full precision and for every image; collapsed to M_ij = a_i + b_j - <t_i, s_j> / tau with t_i = p_i . W, so that a
/// class's sum over its keys costs one product with the sum of its keys; psi's ranges are taken from images that
/// observe() is shown, so that an image's scores need not depend on the others; class means by default.
class CONTRASTIVE_API TipX : public Adapter {
 public:
  /// Throws: ConfigError unless tau is above 0.
  explicit TipX(const TipXOptions& options = {});

  std::string name() const override { return "tip-x"; }
  std::vector<Parameter> parameters() const override;
  std::map<std::string, std::string> settings() const override;

  /// Takes the ranges of psi from these images against all keys. fit() has shown it the support set itself (4,096 of
  /// its rows at most, evenly spread). Of psi `none` nothing changes. Throws: Error if no rank has an image.
  void observe(const QueryFeatures& queries, const distributed::ProcessGroup& group = {}) override;

  /// M_ij of every image and key, by the collapsed form. Shapes: features [N, D] to [N, M]. For analysis: scores
  /// never make it.
  torch::Tensor divergences(const torch::Tensor& features) const;

 protected:
  void do_fit(const SupportFeatures& support, const TextClassifier& classifier) override;
  ScoreTerms terms(const QueryFeatures& tile, const ParameterValues& values) const override;
  void sweep_terms(const QueryFeatures& tile,
                   const std::function<void(int64_t shape_point, const ScoreTerms&)>& visit) const override;
  std::vector<std::pair<std::string, torch::Tensor*>> fitted() override;
  void check_fitted() const override;
  int64_t tile_rows() const override { return 128; }

 private:
  /// What a signature's divergences are made of.
  struct Signature {
    torch::Tensor text;     ///< t: [n, D], the expected class embedding
    torch::Tensor entropy;  ///< a: [n, 1], the negative entropy, plus log C
  };

  torch::Tensor scaled_cosines(const torch::Tensor& features) const;
  Signature signature(const torch::Tensor& features) const;
  torch::Tensor divergences(const Signature& signature) const;
  torch::Tensor divergence_term(const torch::Tensor& features) const;
  torch::Tensor key_weights() const;

  TipXOptions options_;
  torch::Tensor centred_;      ///< [C, D], the weights less their mean: signatures are the same, rounding is smaller
  torch::Tensor keys_;         ///< [M, D]
  torch::Tensor offsets_;      ///< [C + 1] int64
  torch::Tensor key_terms_;    ///< b: [M], log of the mean of exp over classes
  torch::Tensor class_keys_;   ///< [C, D], sums of keys
  torch::Tensor class_terms_;  ///< [C], sums of b
  torch::Tensor ranges_;       ///< [4] fp64: lowest and highest divergence, lowest and highest affinity
};

}  // namespace contrastive::adapt
