#pragma once

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/data/classification_set.h"
#include "contrastive/data/source.h"
#include "contrastive/distributed/process_group.h"
#include "contrastive/eval/zero_shot.h"
#include "contrastive/image/transform.h"
#include "contrastive/models/clip_model.h"
#include "contrastive/models/image_tower.h"

namespace contrastive::eval {

/// What an image tower makes of labelled images, before the projection.
struct LabelledFeatures {
  torch::Tensor features;  ///< [N, W] fp32, in CPU memory
  torch::Tensor labels;    ///< [N] int64
};

/// Of every sample of a source; over several ranks of those that are this rank's. The tower's mode is as it is.
/// Throws: DataError naming the sample if one can't be read.
CONTRASTIVE_API LabelledFeatures tower_features(models::ImageTowerImpl& tower, const image::PreprocessSpec& preprocess,
                                                const data::SampleSource& source, const ZeroShotOptions& options,
                                                const distributed::ProcessGroup& group = {});

/// evaluate_zero_shot for images whose features are known: equal results where nothing before the projection has
/// changed since. Every rank passes its own features.
CONTRASTIVE_API ClassificationMetrics evaluate_zero_shot(models::ClipModel& model, const LabelledFeatures& images,
                                                         const text::Tokenizer& tokenizer,
                                                         const data::ClassificationSet& set,
                                                         const ZeroShotOptions& options,
                                                         const distributed::ProcessGroup& group = {});

}  // namespace contrastive::eval
