#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/data/source.h"

namespace contrastive::data {

/// Labelled images with what a zero-shot classifier is built from.
struct ClassificationSet {
  std::vector<std::string> class_names;  ///< label i is class_names[i]
  std::vector<std::string> class_ids;    ///< of the same order, as "n01440764"; empty if the set has none
  std::vector<std::string> templates;    ///< each holds a placeholder for the class name; may be empty
  bool is_multi_label = false;           ///< samples have Sample::labels instead of a label
  std::shared_ptr<const SampleSource> source;
  std::string name;  ///< of the data set: the folder's
};

/// Opens a split of a data set in CLIP_benchmark's webdataset layout.
///
///     <folder>/classnames.txt                            a name a line
///     <folder>/zeroshot_classification_templates.txt     a template a line
///     <folder>/<split>/{nshards.txt, 0.tar, 1.tar, ...}  members .webp, .png, .jpg or .jpeg, and .cls (integer text)
///
/// `folder` may also be the split folder itself; the two lists are then looked for there and in its parent.
/// The source reads labels and no captions; a label outside the class names is an error of read().
/// Throws: DataError that names the file: missing, empty, an empty name, a template without {c}, a number of shards
/// that doesn't fit the shards there, or a data set of another type (dataset_type.txt). Source: the layout is that of
/// github.com/LAION-AI/CLIP_benchmark.
CONTRASTIVE_API ClassificationSet open_classification_folder(const std::filesystem::path& folder,
                                                             const std::string& split = "test");

}  // namespace contrastive::data
