#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>

#include "contrastive/core/export.h"
#include "contrastive/distributed/process_group.h"
#include "contrastive/eval/tower_features.h"

namespace contrastive::eval {

struct FeatureCacheOptions {
  std::filesystem::path folder;  ///< made if it isn't there; holds files of several settings
  /// All that the features depend on, in plain ASCII: the model's and the data's fingerprints, preprocessing, stage,
  /// precision. Files are named by a hash of them, and keep them.
  std::map<std::string, std::string> settings;
  int64_t num_samples = 0;
  int64_t samples_per_part = 16384;  ///< how much a kill may lose
};

/// Features of samples [begin, end), in their order, without those that are left out: [n, D] fp32 and labels [n].
using FeatureProducer = std::function<LabelledFeatures(int64_t begin, int64_t end)>;

/// The features of all samples: mapped from the folder's file, which is made first, or finished, if it isn't there.
/// A part that was written is not asked for again.
///
/// Over several ranks the first one writes; `produce` is called on every rank for the same ranges and returns the
/// whole range's rows on the first rank at least. The folder must be seen by all.
/// Throws: ConfigError if an option is out of range, the file holds other settings, or another process is writing it;
/// DataError if no sample is left; CheckpointError if a file is damaged or can't be written. All ranks throw.
CONTRASTIVE_API LabelledFeatures cached_features(const FeatureCacheOptions& options, const FeatureProducer& produce,
                                                 const distributed::ProcessGroup& group = {});

/// Where the features of these settings lie.
CONTRASTIVE_API std::filesystem::path feature_cache_file(const FeatureCacheOptions& options);

}  // namespace contrastive::eval
