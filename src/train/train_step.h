#pragma once

#include <vector>

#include <torch/types.h>

#include "contrastive/core/safetensors.h"
#include "contrastive/data/batch.h"
#include "contrastive/distributed/gradient_reducer.h"
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

struct TrainStepOptions {
  bool bf16 = false;
  bool restorable = false;        ///< restore_buffers may be called
  int64_t accumulate = 1;         ///< parts that this rank's rows are forwarded in; must divide them
  int64_t locked_batch_size = 0;  ///< rows that a locked image tower forwards at a time; 0: all of this rank's
  distributed::ReducerOptions reducer = {};
};

/// Forward and backward of one batch: from uint8 pixels to gradients in the parameters.
///
/// Over several ranks every rank forwards its rows of the batch; loss and gradients are those of the whole batch, with
/// the same bits on every rank. Gradients are sent while the (last) backward pass runs.
///
/// In several parts, the features of all are computed first, without a graph; then the loss of the whole batch once,
/// which gives the gradient of every feature; then each part again, with a graph and the same random draws. Memory is
/// that of one part; gradients are those of the whole batch to rounding, but for BatchNorm, which sees one part at a
/// time (its running statistics move once a part).
/// Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup".
///
/// A locked image tower is forwarded once, without a graph, before anything else: what follows is the same as for a
/// batch that comes with features.
class TrainStep {
 public:
  TrainStep(models::ClipModel model, const image::PreprocessSpec& preprocess, const TrainStepOptions& options,
            const distributed::ProcessGroup& group = {});

  /// Adds the gradients of the batch's loss to the parameters' (over several ranks: sets them). `batch`: this rank's
  /// rows, as many on every rank. `seed`: for what the model draws at random.
  StepResult forward_backward(const data::Batch& batch, uint64_t seed);

  /// Puts the buffers (BatchNorm statistics) back to before the last forward_backward; needs `restorable`.
  void restore_buffers();

  const NamedTensors& parameters() const { return parameters_; }

 private:
  torch::Tensor locked_features(const torch::Tensor& images);
  torch::Tensor normalized(const torch::Tensor& images) const;
  loss::ContrastiveLossOutput at_once(const data::Batch& batch, uint64_t seed);
  models::ClipOutput forward(const data::Batch& batch, uint64_t seed, int64_t first);
  int64_t first_row(const data::Batch& batch) const;
  models::ClipOutput forward_whole(const data::Batch& batch, uint64_t seed);
  StepResult result_of(const loss::ContrastiveLossOutput& loss) const;
  loss::ContrastiveLossOutput accumulate(const data::Batch& batch, uint64_t seed);
  std::vector<torch::Tensor> copy_buffers() const;
  void set_buffers(const std::vector<torch::Tensor>& values);

  models::ClipModel model_;
  image::PreprocessSpec preprocess_;
  TrainStepOptions options_;
  distributed::ProcessGroup group_;
  NamedTensors parameters_;
  distributed::GradientReducer reducer_;
  std::vector<torch::Tensor> buffers_before_;
};

}  // namespace contrastive::train::detail
