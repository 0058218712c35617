#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/eval/classification_meter.h"
#include "contrastive/eval/logistic_regression.h"
#include "contrastive/eval/tower_features.h"

namespace contrastive::eval {

/// Which values of c are tried on the validation samples.
enum class SweepMode {
  none,    ///< the options' own c is taken
  binary,  ///< 1e-6, 1e-4, ..., 1e6, then the interval around the best is halved until there are 8 steps a decade
  full,    ///< all 97 values from 1e-6 to 1e6, 8 steps a decade
};

/// One value of c on the validation samples.
struct SweepPoint {
  double c = 0;
  double validation_accuracy = 0;
  int64_t iterations = 0;
  bool converged = false;
};

struct LinearProbeOptions {
  LogisticRegressionOptions regression = {.c = 0.316};
  SweepMode sweep = SweepMode::binary;
  /// Share of every class of the training samples that is held out where there are no validation samples: a fifth
  /// (CLIP_benchmark leaves it to its user, and draws it from all samples together).
  double held_out_share = 0.2;
  int64_t seed = 0;  ///< of that draw
  /// Called after each fit of the sweep.
  std::function<void(const SweepPoint&)> on_point = {};
};

struct SweepResult {
  double c = 0;                   ///< with the best accuracy; of equal ones the smallest: the strongest penalty
  std::vector<SweepPoint> curve;  ///< by rising c
  LinearClassifier classifier;    ///< that of c
};

/// Fits `train` with several c, each from the solution of the nearest c so far, and judges them by `validation`.
/// The classifiers of a binary sweep (at most 15) are kept until it ends.
/// Throws: see LogisticRegression; DataError if there are no validation samples.
/// Source: Radford et al. 2021, appendix A.3; its lambda is this c.
CONTRASTIVE_API SweepResult sweep_c(const TrainingRows& train, const TrainingRows& validation, int64_t num_classes,
                                    const LinearProbeOptions& options);

struct LinearProbeResult {
  double c = 0;
  std::vector<SweepPoint> curve;  ///< empty without a sweep
  LogisticRegressionResult fit;   ///< on all training samples
  ClassificationMetrics test;
};

/// The paper's linear probe: chooses c on validation samples, fits training and validation samples together, and
/// reports the test samples. Features are taken as they are: the paper's are those before the projection, not
/// normalised. Everything is a function of the arguments. Memory beyond the features is bounded: see
/// LogisticRegression. Throws: see sweep_c; ConfigError if an option is out of range.
CONTRASTIVE_API LinearProbeResult linear_probe(const LabelledFeatures& train,
                                               const std::optional<LabelledFeatures>& validation,
                                               const LabelledFeatures& test, int64_t num_classes,
                                               const LinearProbeOptions& options);

/// A split of samples, both sides by rising index.
struct HeldOut {
  torch::Tensor kept;      ///< [N] int64
  torch::Tensor held_out;  ///< [M] int64
};

/// Takes the share (rounded, and never the last sample) of every class's samples, drawn by the seed.
CONTRASTIVE_API HeldOut hold_out(const torch::Tensor& labels, int64_t num_classes, double share, int64_t seed);

/// What a classifier makes of samples, read tile by tile.
CONTRASTIVE_API ClassificationMetrics evaluate_classifier(const LinearClassifier& classifier,
                                                          const TrainingRows& samples);

struct FewShotProbeOptions {
  std::vector<int64_t> shots = {1, 2, 4, 8, 16};
  int64_t seeds = 3;  ///< draws: seeds 0, 1, ... of draw_shots
  /// With a sweep, min(shots, 4) further samples a class are the validation samples; they are not learned from.
  LinearProbeOptions probe = {.sweep = SweepMode::none};
};

/// What a number of shots gave.
struct FewShotProbeMetrics {
  int64_t shots = 0;
  std::vector<ClassificationMetrics> draws;  ///< of each seed
  std::vector<double> c;                     ///< of each seed
  CONTRASTIVE_API double mean_top1() const;
  /// With n - 1 in the denominator; 0 for a single seed.
  CONTRASTIVE_API double top1_deviation() const;
};

/// Linear probes that learn from a few samples a class of `train` (all of a class that has fewer).
/// Throws: see linear_probe.
CONTRASTIVE_API std::vector<FewShotProbeMetrics> probe_few_shot(const LabelledFeatures& train,
                                                                const LabelledFeatures& test, int64_t num_classes,
                                                                const FewShotProbeOptions& options);

}  // namespace contrastive::eval
