#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/data/classification_set.h"
#include "contrastive/distributed/process_group.h"
#include "contrastive/eval/image_pass.h"
#include "contrastive/image/transform.h"
#include "contrastive/models/clip_model.h"

namespace contrastive::eval {

/// Least squares from features to -1 and +1 for each class, with an L2 penalty. Features are centred and divided by
/// (standard deviation + 1e-5), both those of the samples it was made from; a constant 100 beside them makes for a bias
/// that the penalty hardly touches. All in fp64, on the CPU.
/// Source: the few-shot evaluation of big_vision (fewshot_lsr). Deviates: solved by Cholesky factors instead of
/// eigenvectors, which gives the same weights.
class CONTRASTIVE_API LinearRegression {
 public:
  /// Shapes: features [N, D], labels [N] int64 in [0, num_classes).
  /// Throws: Error if shapes or labels are wrong, there is no sample, or l2_reg isn't above 0.
  LinearRegression(const torch::Tensor& features, const torch::Tensor& labels, int64_t num_classes,
                   double l2_reg = 1024);

  /// Shapes: features [M, D] to [M, C], fp64.
  torch::Tensor scores(const torch::Tensor& features) const;

  /// [D + 1, C], of standardised features; the last row is that of the constant.
  const torch::Tensor& weights() const { return weights_; }

 private:
  torch::Tensor standardised(const torch::Tensor& features) const;

  torch::Tensor mean_;  ///< [1, D]
  torch::Tensor std_;   ///< [1, D]
  torch::Tensor weights_;
};

/// The labels of all samples, without decoding an image. [N] int64. Throws: DataError naming the sample whose label
/// isn't a class.
CONTRASTIVE_API torch::Tensor read_labels(const data::ClassificationSet& set);

/// Up to `shots` samples of every class, drawn by the seed; the first of more shots are those of fewer. Classes stand
/// one after the other. Shapes: labels [N] int64 to [at most num_classes * shots], indices into labels.
CONTRASTIVE_API torch::Tensor draw_shots(const torch::Tensor& labels, int64_t num_classes, int64_t shots, int64_t seed);

/// Share of the rows whose highest score is their label's, in [0, 1]. Shapes: scores [M, C], labels [M].
CONTRASTIVE_API double top1_share(const torch::Tensor& scores, const torch::Tensor& labels);

struct FewShotOptions {
  std::vector<int64_t> shots = {1, 5, 10, 25};
  int64_t seeds = 3;  ///< draws: seeds 0, 1, ...
  double l2_reg = 1024;
  ImagePassOptions pass = {.stage = FeatureStage::tower};  ///< bad samples may be left out of the test only
};

/// What a number of shots gave. Accuracies lie in [0, 1].
struct FewShotMetrics {
  int64_t shots = 0;
  std::vector<double> accuracies;  ///< of each seed
  CONTRASTIVE_API double mean() const;
};

/// The accuracy on `test` of linear regressions on the image tower's features, before its projection, of a few samples
/// a class of `train`; only these are encoded. Runs on the model's device, in eval mode; the model's mode is restored.
/// Over several ranks each encodes its share. `skipped`, if there is one, gets what was left out of the test.
/// Throws: DataError if the sets' classes differ or naming the sample that can't be read; ConfigError if an option is
/// out of range. Source: Zhai et al. 2022 (LiT), figure 4; big_vision.
CONTRASTIVE_API std::vector<FewShotMetrics> evaluate_few_shot(
    models::ClipModel& model, const image::PreprocessSpec& preprocess, const data::ClassificationSet& train,
    const data::ClassificationSet& test, const FewShotOptions& options, const distributed::ProcessGroup& group = {},
    SkippedSamples* skipped = nullptr);

}  // namespace contrastive::eval
