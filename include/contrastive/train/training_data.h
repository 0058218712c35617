#pragma once

#include <filesystem>
#include <memory>

#include "contrastive/core/export.h"
#include "contrastive/data/source.h"
#include "contrastive/image/transform.h"
#include "contrastive/train/run_options.h"

namespace contrastive::train {

/// The training set of a config: its shards, or the synthetic set. Throws: DataError, ConfigError.
CONTRASTIVE_API std::shared_ptr<const data::SampleSource> open_sample_source(const DataOptions& options);

/// How a run crops its training images. `evaluation`: its preprocessing, which the crop `none` is.
CONTRASTIVE_API image::TrainCropOptions crop_options(const RunOptions& options,
                                                     const image::PreprocessSpec& evaluation);

/// Where the vocabulary of a run's model lies, if it isn't CLIP's: `tokenizer`, or beside text.checkpoint or `weights`.
/// For eval::open_tokenizer.
CONTRASTIVE_API std::filesystem::path tokenizer_origin(const RunOptions& options);

/// Throws: ConfigError that lists every file and folder that the run needs and that isn't there, with where_to_get's
/// word on it. `resumes`: weights come from a checkpoint of the run.
CONTRASTIVE_API void require_inputs(const RunOptions& options, bool resumes = false);

}  // namespace contrastive::train
