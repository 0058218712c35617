#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "contrastive/data/shard_index.h"

#include "data/read_file.h"

namespace contrastive::data::detail {

/// The bytes of an index file: the table, the state of the shard it was made from, and a checksum.
std::string encode_index(const ShardTable& table, const FileStamp& shard);

/// The table, or nothing if the bytes are damaged, of another version, or made for another state of the shard.
std::optional<ShardTable> decode_index(std::string_view bytes, const FileStamp& shard);

/// Where the index of a shard may be, best place first. `directory` may be empty.
std::vector<std::filesystem::path> index_places(const std::filesystem::path& shard,
                                                const std::filesystem::path& directory);

/// The table from the first place that has a valid file.
std::optional<ShardTable> load_index(const std::vector<std::filesystem::path>& places, const FileStamp& shard);

/// Writes the table to the first place that can be written. Returns: false if there is none.
bool store_index(const std::vector<std::filesystem::path>& places, const ShardTable& table, const FileStamp& shard);

}  // namespace contrastive::data::detail
