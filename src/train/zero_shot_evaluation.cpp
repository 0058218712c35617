#include "train/zero_shot_evaluation.h"

#include <utility>

#include "contrastive/train/image_tower.h"

namespace contrastive::train::detail {

ZeroShotEvaluation::ZeroShotEvaluation(const RunOptions& options, const image::PreprocessSpec& preprocess,
                                       std::shared_ptr<const text::Tokenizer> tokenizer, data::ClassificationSet set,
                                       const distributed::ProcessGroup& group)
    : options_(options),
      preprocess_(preprocess),
      tokenizer_(std::move(tokenizer)),
      set_(std::move(set)),
      group_(group) {
  zero_shot_.batch_size = options.eval.zero_shot.batch_size;
  zero_shot_.workers = options.data.workers;
  zero_shot_.bf16 = options.precision == "amp_bf16";
  zero_shot_.prompts = options.eval.zero_shot.prompts;
  zero_shot_.canonicalize = options.eval.zero_shot.canonicalize;
}

eval::ClassificationMetrics ZeroShotEvaluation::run(models::ClipModel& model) {
  if (!model->visual->features_are_locked()) {
    features_.reset();
    return eval::evaluate_zero_shot(model, preprocess_, *tokenizer_, set_, zero_shot_, group_);
  }
  if (!features_) features_ = locked_features(model);
  return eval::evaluate_zero_shot(model, *features_, *tokenizer_, set_, zero_shot_, group_);
}

eval::LabelledFeatures ZeroShotEvaluation::locked_features(models::ClipModel& model) const {
  if (options_.image.cache.empty()) {
    return eval::tower_features(*model->visual, preprocess_, *set_.source, zero_shot_, group_);
  }
  const auto opened = open_trusted_image_tower(options_);
  opened.tower->to(model->logit_scale.device());
  return eval::tower_features(*opened.tower, preprocess_, *set_.source, zero_shot_, group_);
}

}  // namespace contrastive::train::detail
