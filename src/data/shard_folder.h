#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace contrastive::data::detail {

/// Where the parts of a data set of shards lie.
struct ShardFolder {
  std::filesystem::path root;   ///< where the lists are, unless they are in the split folder
  std::filesystem::path split;  ///< where the shards are

  std::vector<std::filesystem::path> folders() const { return {split, root}; }
};

/// Nothing if the folder isn't one of shards at all. Throws: DataError if it has shards, but of other splits only.
std::optional<ShardFolder> find_shard_folder(const std::filesystem::path& folder, const std::string& split);

/// nshards.txt's 0.tar, 1.tar, ..., or without it all .tar files by name. Throws: DataError.
std::vector<std::filesystem::path> find_shards(const std::filesystem::path& folder);

/// The content of dataset_type.txt, or "". Throws: DataError.
std::string dataset_type(const ShardFolder& folder);

}  // namespace contrastive::data::detail
