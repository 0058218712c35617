#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "contrastive/core/export.h"

namespace contrastive::data {

/// Expands a list of shards as webdataset writes it: `train/{00000..00049}.tar::more/{a,b}.tar`.
///
/// Ranges `{first..last}` and `{first..last..step}` run up or down; if an end is written with leading zeros every
/// number is padded to the wider end. Comma sets `{a,b}` may be empty, hold further braces, and stand beside each
/// other. Lists are joined by `::`. Paths stay as written, so relative ones are relative to the working directory.
/// Throws: DataError if the list or a part of it is empty or malformed, names a pipe or a URL, or gives more than a
/// million shards.
CONTRASTIVE_API std::vector<std::filesystem::path> expand_shard_list(const std::string& list);

/// Throws: DataError that counts every shard that is not a readable regular file, and names the first ten with the
/// reason.
CONTRASTIVE_API void require_shards_exist(const std::vector<std::filesystem::path>& shards);

}  // namespace contrastive::data
