#pragma once

#include <string>
#include <vector>

#include "contrastive/data/shard_index.h"

namespace contrastive::data::detail {

/// Looks whether the labels of shards fit the class names: every integer .cls must lie in [0, number of names), and a
/// .txt beside it must not be the name of another class (up to 256 samples, spread evenly). What else may be wrong with
/// a sample is left to its reader. `names_file`: for messages. Throws: DataError that names the sample.
void check_labels(const ShardIndex& index, const std::vector<std::string>& class_names, const std::string& names_file);

}  // namespace contrastive::data::detail
