#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

#include "contrastive/data/shard_index.h"

namespace contrastive::data::detail {

/// What a walk over a shard found.
struct ShardScan {
  ShardTable table;
  bool has_end_blocks = false;
  std::string unfinished_key;  ///< the sample whose members were being read when the walk threw
};

/// Called with the key of a sample that has an extension twice; the second member is left out if this returns.
using DuplicateHandler = std::function<void(std::string_view key, std::string_view extension)>;

/// Walks over a shard and groups its members into samples in `scan`, which holds the finished samples before the
/// damage if the walk throws. Throws: DataError as TarReader, and if the shard exceeds what a ShardTable can hold.
void scan_shard(const std::filesystem::path& shard, const DuplicateHandler& on_duplicate, ShardScan& scan);

}  // namespace contrastive::data::detail
