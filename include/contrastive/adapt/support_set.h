#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include <torch/types.h>

#include "contrastive/adapt/support_features.h"
#include "contrastive/core/export.h"

namespace contrastive::adapt {

/// Where a row of a support set is from.
struct SupportSource {
  std::string data;                                         ///< the data set, folder or index
  std::string key;                                          ///< the image's name in it: a path, or shard and key
  std::string prompt;                                       ///< the text it was found by; empty if it wasn't retrieved
  double score = std::numeric_limits<double>::quiet_NaN();  ///< its cosine with that text
  std::string note;                                         ///< "fallback", if it was taken to fill a class up
};

/// Images of known classes as features of one model, with what they are and where they are from.
///
/// Labels are positions in class_names, which the file holds: they never depend on the order of folders.
struct SupportSet {
  SupportFeatures features = {};                    ///< fp32, sorted by class
  std::vector<SupportSource> rows = {};             ///< [M]
  std::vector<std::string> class_names;             ///< [C]
  std::vector<std::string> class_ids;               ///< [C], or empty
  std::string model_sha256 = {};                    ///< fingerprint of the model that made the features (eval::Encoder)
  std::string preprocess = {};                      ///< preprocessing in words
  std::string preprocess_sha256 = {};               ///< of the exact preprocessing
  std::map<std::string, std::string> made_by = {};  ///< the builder and its options: "builder": "from-split", ...

  int64_t size() const { return features.size(); }
  int64_t num_classes() const { return static_cast<int64_t>(class_names.size()); }

  /// SHA-256 over features, labels and names.
  CONTRASTIVE_API std::string fingerprint() const;
};

/// Writes `file` (safetensors: features fp32 [M, D], labels, views where there are some) and the manifest beside it
/// (`.json` in place of `.safetensors`: classes with ids and counts, a source a row, model, preprocessing, the tensors'
/// SHA-256), each atomically, the manifest last. Throws: ConfigError unless the file ends in .safetensors; DataError as
/// SupportFeatures::check; CheckpointError if the write fails.
CONTRASTIVE_API void write_support_set(const std::filesystem::path& file, const SupportSet& set);

/// Throws: CheckpointError that names the file if one of the two is missing, damaged or belongs to another; DataError
/// as SupportFeatures::check.
CONTRASTIVE_API SupportSet read_support_set(const std::filesystem::path& file);

/// The set with its classes in the order of `class_names`, which must all be in it, by name or, where both have ids, by
/// id; classes of the set that aren't asked for are left out. Throws: DataError that lists names that are missing.
CONTRASTIVE_API SupportSet select_classes(const SupportSet& set, const std::vector<std::string>& class_names,
                                          const std::vector<std::string>& class_ids = {});

/// Rows and classes of both. Classes of the same id (or name, without ids) are one; new ones come after those of `a`.
/// A row of `b` whose features are those of a row of `a`'s class, to the bit, is left out. Throws: DataError unless
/// both are of one model, preprocessing and width (both values are shown).
CONTRASTIVE_API SupportSet append(const SupportSet& a, const SupportSet& b);

/// At most `max_per_class` rows of each class: its first ones.
CONTRASTIVE_API SupportSet cap_per_class(const SupportSet& set, int64_t max_per_class);

/// Throws: DataError that shows both fingerprints, unless the set's features are of this model and preprocessing.
CONTRASTIVE_API void require_model(const SupportSet& set, const std::string& model_sha256,
                                   const std::string& preprocess_sha256);

}  // namespace contrastive::adapt
