#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/eval/encoder.h"

namespace contrastive::eval {

/// One of the classes that an image may show.
struct Prediction {
  int64_t label = 0;  ///< position in the class names
  std::string name;
  double probability = 0;
};

/// Assigns images to classes that are described by their names only. Const members are thread-safe.
/// Source: Radford et al. 2021, section 3.1.
class CONTRASTIVE_API ZeroShotClassifier {
 public:
  /// Fills every template ("a photo of a {}.", see text::fill_template) with every name and averages a class's prompts.
  /// Throws: DataError if there is no name, no template, or a template without a placeholder.
  ZeroShotClassifier(const Encoder& encoder, std::vector<std::string> class_names,
                     std::span<const std::string> templates);

  /// From class embeddings made before. Shapes: weights [C, E], L2-normalised rows. With a bias the model is one of the
  /// sigmoid loss. Throws: Error if there is not one name a row.
  ZeroShotClassifier(std::vector<std::string> class_names, torch::Tensor weights, double logit_scale,
                     std::optional<double> logit_bias = {});

  /// The scaled cosines of features [N, E] (L2-normalised) with the classes, plus the bias if there is one. [N, C] fp32
  torch::Tensor logits(const torch::Tensor& features) const;

  /// Softmax over the classes; with a bias the sigmoid of each, which need not sum to 1. [N, C] fp32
  torch::Tensor probabilities(const torch::Tensor& features) const;

  /// The k most probable classes of each row (all, if there are fewer), best first, ties by label.
  std::vector<std::vector<Prediction>> classify(const torch::Tensor& features, int64_t k = 5) const;

  const std::vector<std::string>& class_names() const { return class_names_; }
  const torch::Tensor& weights() const { return weights_; }  ///< [C, E]

 private:
  std::vector<std::string> class_names_;
  torch::Tensor weights_;
  double logit_scale_;
  std::optional<double> logit_bias_;
};

}  // namespace contrastive::eval
