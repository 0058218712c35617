#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "contrastive/data/source.h"

namespace contrastive::data::detail {

/// The samples of `source` with the lists of classes in a JSON file (see ClassificationSetOptions) as their labels.
/// Throws: DataError that names the file and the sample.
std::shared_ptr<const SampleSource> with_labels_file(std::shared_ptr<const SampleSource> source,
                                                     const std::filesystem::path& file, int64_t num_labels);

}  // namespace contrastive::data::detail
