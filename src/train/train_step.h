#pragma once

#include <vector>

#include <torch/types.h>

#include "contrastive/core/safetensors.h"
#include "contrastive/data/batch.h"
#include "contrastive/image/transform.h"
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
class TrainStep {
 public:
  TrainStep(models::ClipModel model, const image::PreprocessSpec& preprocess, bool bf16, bool restorable);

  /// Adds the gradients of the batch's loss to the parameters'. `seed`: for what the model draws at random.
  StepResult forward_backward(const data::Batch& batch, uint64_t seed);

  /// Puts the buffers (BatchNorm statistics) back to before the last forward_backward; needs `restorable`.
  void restore_buffers();

  const NamedTensors& parameters() const { return parameters_; }

 private:
  models::ClipModel model_;
  image::PreprocessSpec preprocess_;
  bool bf16_;
  bool restorable_;
  NamedTensors parameters_;
  std::vector<torch::Tensor> buffers_before_;
};

}  // namespace contrastive::train::detail
