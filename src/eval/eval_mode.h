#pragma once

#include "contrastive/models/clip_model.h"

namespace contrastive::eval::detail {

/// Eval mode for the life of the object.
class EvalMode {
 public:
  explicit EvalMode(models::ClipModel& model) : model_(model), was_training_(model->is_training()) { model_->eval(); }
  ~EvalMode() { model_->train(was_training_); }
  EvalMode(const EvalMode&) = delete;
  EvalMode& operator=(const EvalMode&) = delete;

 private:
  models::ClipModel& model_;
  bool was_training_;
};

}  // namespace contrastive::eval::detail
