#pragma once

#include <vector>

#include <torch/types.h>

#include "contrastive/core/safetensors.h"
#include "contrastive/data/batch.h"
#include "contrastive/image/transform.h"
#include "contrastive/loss/contrastive_loss.h"
#include "contrastive/models/clip_model.h"

namespace contrastive::train::detail {

struct StepResult {
  double loss = 0;
  double accuracy = 0;
  double logit_scale = 0;
  double grad_norm = 0;
  torch::Tensor grad_norm_tensor;  ///< []
  bool is_finite() const;
};

/// Forward and backward of one batch: from uint8 pixels to gradients in the parameters.
///
/// In several parts, the features of all are computed first, without a graph; then the loss of the whole batch once,
/// which gives the gradient of every feature; then each part again, with a graph and the same random draws. Memory is
/// that of one part; gradients are those of the whole batch to rounding, but for BatchNorm, which sees one part at a
/// time (its running statistics move once a part).
/// Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup".
class TrainStep {
 public:
  /// `accumulate`: parts that a batch is forwarded in; must divide its rows.
  TrainStep(models::ClipModel model, const image::PreprocessSpec& preprocess, bool bf16, bool restorable,
            int64_t accumulate = 1);

  /// Adds the gradients of the batch's loss to the parameters'. `seed`: for what the model draws at random.
  StepResult forward_backward(const data::Batch& batch, uint64_t seed);

  /// Puts the buffers (BatchNorm statistics) back to before the last forward_backward; needs `restorable`.
  void restore_buffers();

  const NamedTensors& parameters() const { return parameters_; }

 private:
  models::ClipOutput forward(const data::Batch& batch, uint64_t seed, int64_t first_row);
  models::ClipOutput forward_whole(const data::Batch& batch, uint64_t seed);
  StepResult result_of(const loss::ContrastiveLossOutput& loss) const;
  loss::ContrastiveLossOutput accumulate(const data::Batch& batch, uint64_t seed);
  std::vector<torch::Tensor> copy_buffers() const;
  void set_buffers(const std::vector<torch::Tensor>& values);

  models::ClipModel model_;
  image::PreprocessSpec preprocess_;
  bool bf16_;
  bool restorable_;
  int64_t accumulate_;
  NamedTensors parameters_;
  std::vector<torch::Tensor> buffers_before_;
};

}  // namespace contrastive::train::detail
