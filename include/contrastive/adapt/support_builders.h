#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "contrastive/adapt/support_set.h"
#include "contrastive/core/export.h"
#include "contrastive/data/classification_set.h"
#include "contrastive/distributed/process_group.h"
#include "contrastive/eval/image_pass.h"
#include "contrastive/image/transform.h"
#include "contrastive/models/clip_model.h"

namespace contrastive::adapt {

struct FromSplitOptions {
  int64_t shots = 16;  ///< images a class; a class that has fewer gives all
  int64_t seed = 1;
  int64_t views = 1;  ///< random crops of each image; 1: the image as in evaluation, which nothing but the draw changes
  double crop_scale_min = 0.5;       ///< a crop's share of the image's area
  double flip = 0.5;                 ///< probability that a crop is mirrored
  eval::ImagePassOptions pass = {};  ///< its stage doesn't matter; images that can't be read are an error
};

/// A few images of each class of a labelled split, drawn as eval::draw_shots does: the images of fewer shots are among
/// those of more. With several views a key is the mean of the views' embeddings as the model gives them, normalised
/// afterwards, and `views` holds each of them normalised. Crops are keyed by (seed, sample, view): batch size and
/// number of ranks don't change them. Fields that tell the model (model_sha256, preprocess...) are left to the caller.
/// Throws: DataError naming the class without a sample, or the sample that can't be read; ConfigError if an option is
/// out of range. Source: Zhang et al. 2022 (Tip-Adapter), whose keys are means of ten random crops.
CONTRASTIVE_API SupportSet support_from_split(models::ClipModel& model, const image::PreprocessSpec& preprocess,
                                              const data::ClassificationSet& train, const FromSplitOptions& options,
                                              const distributed::ProcessGroup& group = {});

}  // namespace contrastive::adapt
