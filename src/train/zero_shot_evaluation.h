#pragma once

#include <memory>
#include <optional>
#include <string>

#include "contrastive/data/classification_set.h"
#include "contrastive/distributed/process_group.h"
#include "contrastive/eval/tower_features.h"
#include "contrastive/eval/zero_shot.h"
#include "contrastive/text/tokenizer.h"
#include "contrastive/train/run_options.h"

namespace contrastive::train::detail {

/// Zero-shot classification of a run's test set, again and again. The test images go through a locked image tower once
/// only; a run from cached embeddings opens the tower for that.
class ZeroShotEvaluation {
 public:
  ZeroShotEvaluation(const RunOptions& options, const image::PreprocessSpec& preprocess,
                     std::shared_ptr<const text::Tokenizer> tokenizer, data::ClassificationSet set,
                     const distributed::ProcessGroup& group);

  const std::string& name() const { return set_.name; }

  /// To be called on all ranks.
  eval::ClassificationMetrics run(models::ClipModel& model);

 private:
  eval::LabelledFeatures locked_features(models::ClipModel& model) const;

  RunOptions options_;
  image::PreprocessSpec preprocess_;
  std::shared_ptr<const text::Tokenizer> tokenizer_;
  data::ClassificationSet set_;
  distributed::ProcessGroup group_;
  eval::ZeroShotOptions zero_shot_;
  std::optional<eval::LabelledFeatures> features_;
};

}  // namespace contrastive::train::detail
