#pragma once

#include <map>
#include <string>
#include <vector>

#include <torch/types.h>

#include "contrastive/adapt/adapter.h"
#include "contrastive/core/export.h"

namespace contrastive::adapt {

struct CalipOptions {
  double largest_b2 = 2;    ///< where the search of b2 ends
  double largest_b3 = 0.1;  ///< where the search of b3 ends
};

/// Texts attend to places in the image and places to texts, without parameters or a support set:
/// scale * (f . W^T + b2 f . F_t + b3 F_v . W^T).
///
/// With F_s the image's spatial features [T, D] (QueryFeatures::tokens) and A = 2 F_s W^T [T, C]: a class's F_t is the
/// mean of F_s weighted by A's softmax over places; a place's text is the mean of W weighted by A's softmax over
/// classes, and F_v their mean plus their maximum over places. Neither is normalised. An image's scores need memory for
/// its own A only: images are taken a few at a time.
/// Source: Guo et al., "CALIP: Zero-Shot Enhancement of CLIP with Parameter-free Attention", AAAI 2023, as its
/// published code has it; the defaults of b2 and b3 are those found for ImageNet.
class CONTRASTIVE_API Calip : public Adapter {
 public:
  /// Throws: ConfigError naming the option that is out of range.
  explicit Calip(CalipOptions options = {});

  std::string name() const override { return "calip"; }

  /// b2 and b3: 200 values each, from .001 on.
  std::vector<Parameter> parameters() const override;
  std::map<std::string, std::string> settings() const override;
  bool needs_tokens() const override { return true; }
  bool needs_support() const override { return false; }

 protected:
  void do_fit(const SupportFeatures& support, const TextClassifier& classifier) override;
  /// Throws: DataError for spatial features that aren't finite.
  ScoreTerms terms(const QueryFeatures& tile, const ParameterValues& values) const override;

 private:
  CalipOptions options_;
};

}  // namespace contrastive::adapt
