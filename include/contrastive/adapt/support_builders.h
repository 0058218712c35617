#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "contrastive/adapt/support_set.h"
#include "contrastive/core/export.h"
#include "contrastive/data/classification_set.h"
#include "contrastive/data/source.h"
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

struct FromFolderOptions {
  int64_t max_per_class = 0;                                 ///< the first images of a class; 0: all
  eval::ImagePassOptions pass = {.skip_bad_samples = true};  ///< its stage doesn't matter
};

/// What support_from_folder left out.
struct FromFolderReport {
  eval::SkippedSamples unreadable = {};
  int64_t duplicates = 0;  ///< images with the very features of an earlier one of their class
};

/// All images of a labelled set, such as generated or downloaded ones in class folders, as evaluation sees them. Images
/// that can't be read are left out and reported, never replaced; so are repeated ones. Which class a folder is was
/// decided when the set was opened (data::ClassificationSetOptions::class_names, class_ids). Fields that tell the model
/// are left to the caller. Throws: DataError naming the classes that are left without an image; ConfigError if an
/// option is out of range.
CONTRASTIVE_API SupportSet support_from_folder(models::ClipModel& model, const image::PreprocessSpec& preprocess,
                                               const data::ClassificationSet& set, const FromFolderOptions& options,
                                               FromFolderReport* report = nullptr,
                                               const distributed::ProcessGroup& group = {});

/// The same rows as features of another model: for a set that was found with one model and is for another. Each image
/// is read again from `source` by its key. Images that can't be read are left out and reported, never replaced. Fields
/// that tell the model are left to the caller. Throws: DataError naming keys that are not in the source, or are there
/// more than once, and classes that are left without an image.
CONTRASTIVE_API SupportSet encode_again(models::ClipModel& model, const image::PreprocessSpec& preprocess,
                                        const SupportSet& set, const data::SampleSource& source,
                                        const eval::ImagePassOptions& pass, eval::SkippedSamples* unreadable = nullptr,
                                        const distributed::ProcessGroup& group = {});

}  // namespace contrastive::adapt
