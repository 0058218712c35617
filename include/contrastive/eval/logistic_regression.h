#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"

namespace contrastive::eval {

/// Features with labels, all of them or chosen rows.
struct TrainingRows {
  torch::Tensor features;   ///< [M, D] fp32 or fp64; may be mapped from a file that is larger than the memory
  torch::Tensor labels;     ///< [M] int64
  torch::Tensor rows = {};  ///< [N] int64 in [0, M); undefined: all rows
};

/// Scores of classes that are linear in the features.
struct LinearClassifier {
  torch::Tensor weights;  ///< [C, D]
  torch::Tensor bias;     ///< [C]

  /// Shapes: features [N, D] to [N, C].
  CONTRASTIVE_API torch::Tensor scores(const torch::Tensor& features) const;
};

struct LogisticRegressionOptions {
  /// How much errors count against the penalty: the paper's lambda (1e-6 to 1e6) and scikit-learn's C.
  double c = 1;
  int64_t max_iterations = 1000;
  /// The largest absolute element of the gradient of objective / (c N) at the end: scikit-learn's tol.
  double tolerance = 1e-4;
  /// How far the objective may be above its minimum, by estimate and relative to it. Unlike the gradient it doesn't
  /// depend on the features' scale. The estimate is too low where c is so large that nearly every sample is certain:
  /// the objective can fall further then, which changes hardly any prediction.
  double objective_tolerance = 1e-7;
};

struct LogisticRegressionResult {
  LinearClassifier classifier;  ///< in the features' dtype, on their device
  double objective = 0;         ///< c * sum of cross-entropies + penalty
  double max_gradient = 0;      ///< see LogisticRegressionOptions::tolerance
  int64_t iterations = 0;
  int64_t evaluations = 0;  ///< passes over the features
  bool converged = false;   ///< else a warning was logged
};

/// Multinomial logistic regression with a bias that isn't penalised, by L-BFGS: minimises
///
///     c * sum_i cross_entropy_i + |W|^2 / 2
///
/// as scikit-learn's LogisticRegression(C=c) does. With two classes the penalty is |W|^2, which makes the
/// difference of the two rows scikit-learn's only row. A class without samples is allowed and gets a low bias
/// (scikit-learn would leave it out).
///
/// The features are read tile by tile: memory beyond them is bounded (about 100 MB, and 30 times the weights).
/// Products are made in the features' dtype on their device, sums over samples in fp64. What the features tell about
/// the curvature (their covariance) is found once and serves every fit.
/// Source: Radford et al. 2021, appendix A.3; scikit-learn's objective.
class CONTRASTIVE_API LogisticRegression {
 public:
  /// Samples are the parts' rows, one part after the other.
  /// Throws: DataError if there are no samples, fewer than two classes occur or a label is out of range; Error if
  /// shapes, dtypes or devices don't fit.
  LogisticRegression(std::vector<TrainingRows> parts, int64_t num_classes);
  LogisticRegression(const torch::Tensor& features, const torch::Tensor& labels, int64_t num_classes);
  ~LogisticRegression();
  LogisticRegression(const LogisticRegression&) = delete;
  LogisticRegression& operator=(const LogisticRegression&) = delete;

  /// The minimum, sought from `start` (the closer, the sooner it is found) or from zeros.
  /// Throws: ConfigError if an option is out of range; DataError naming the sample if a feature isn't finite.
  LogisticRegressionResult fit(const LogisticRegressionOptions& options,
                               const std::optional<LinearClassifier>& start = std::nullopt);

  /// Objective and gradients (fp64) at any weights, those that fit() works with.
  struct Objective {
    double value = 0;
    torch::Tensor weight_gradient;  ///< [C, D]
    torch::Tensor bias_gradient;    ///< [C]
  };
  Objective objective(const LinearClassifier& classifier, double c);

  int64_t num_samples() const;

  /// Rows that are read at once; for tests.
  void set_tile_rows(int64_t rows);

 private:
  class Problem;
  std::unique_ptr<Problem> problem_;
};

}  // namespace contrastive::eval
