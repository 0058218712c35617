#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "contrastive/adapt/adapter.h"
#include "contrastive/core/export.h"

namespace contrastive::adapt {

struct TimoOptions {
  /// How many of a class's prompts join the images as samples: those that match its images best (of equals the first);
  /// 0 for all. TIMO-S searches it.
  int64_t prompts_per_class = 0;
};

/// Text and images guide each other: alpha * scale / 100 * f . w_c + (f . g_c + b_c).
///
/// With s_p the cosine of prompt p and the mean of its class's keys (normalised): the text weight w_c is the mean of
/// the class's prompts, weighted by softmax(gamma * s / |s|) over them (|s| the length of the class's vector of s),
/// normalised. g and b are those of Gaussian discriminant analysis (Gda), fitted on all views of the images and the
/// prompts, each times its s_p, as samples of their class. Searching gamma as well makes it TIMO-S, but for the number
/// of prompts, which is an option. Needs every prompt's embedding (TextClassifier::prompts).
/// Source: Li et al., "Text and Image Are Mutual Beneficial: Enhancing Training-Free Few-Shot Classification with
/// CLIP", AAAI 2025; what the paper leaves open (the length of s, what joins as a sample) as its published code has it.
/// Deviates: classes may have different numbers of prompts, and none counts twice; the text counts by the classifier's
/// scale, which is 100 there; alpha's default, 100, gives text and images the share that they have in Gda; one gamma
/// for all data sets, 50; it is searched together with alpha instead of on the text alone.
class CONTRASTIVE_API Timo : public Adapter {
 public:
  /// Throws: ConfigError naming the option that is out of range.
  explicit Timo(TimoOptions options = {});

  std::string name() const override { return "timo"; }

  /// gamma: 5 to 100 in steps of 5. alpha: the powers of ten from 10^-4 to 10^4.
  std::vector<Parameter> parameters() const override;
  std::map<std::string, std::string> settings() const override;

 protected:
  /// Throws: DataError if the classifier has no prompts' embeddings, or none of a class.
  void do_fit(const SupportFeatures& support, const TextClassifier& classifier) override;
  ScoreTerms terms(const QueryFeatures& tile, const ParameterValues& values) const override;
  std::vector<std::pair<std::string, torch::Tensor*>> fitted() override;
  void check_fitted() const override;

  /// The text weights are made anew for each tile.
  int64_t tile_rows() const override { return 8192; }

 private:
  torch::Tensor text_weights(double gamma) const;  ///< [C, D]

  TimoOptions options_;
  torch::Tensor prompts_;           ///< [P, D]
  torch::Tensor prompt_class_;      ///< [P] int64
  torch::Tensor matches_;           ///< [P], s / |s|
  torch::Tensor gaussian_weights_;  ///< [C, D]
  torch::Tensor gaussian_bias_;     ///< [C]
};

}  // namespace contrastive::adapt
