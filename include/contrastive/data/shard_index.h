#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "contrastive/core/export.h"

namespace contrastive::data {

/// What a tar member's name says about the sample it belongs to.
struct MemberName {
  std::string_view key;   ///< the path up to the first dot of its last part
  std::string extension;  ///< what follows that dot, in lower case; may hold further dots
};

/// Splits a member's name by webdataset's rules. Returns: nothing for a member of no sample: without a dot, starting
/// with a dot, or metadata (a first folder, a file or a key of the form `__*__`).
CONTRASTIVE_API std::optional<MemberName> split_member_name(std::string_view name);

/// The samples of one shard, as arrays: about 10 bytes a member and 8 bytes a sample beside its key.
struct ShardTable {
  std::vector<std::string> extensions;     ///< the different ones, in order of appearance
  std::string keys;                        ///< all keys, one after the other
  std::vector<uint32_t> key_begin{0};      ///< [N + 1], into `keys`
  std::vector<uint32_t> member_begin{0};   ///< [N + 1], into the arrays below
  std::vector<uint32_t> member_block;      ///< [M], offset of the content in blocks of 512 bytes
  std::vector<uint32_t> member_length;     ///< [M], bytes
  std::vector<uint16_t> member_extension;  ///< [M], into `extensions`

  int64_t size() const { return static_cast<int64_t>(key_begin.size()) - 1; }
};

/// One file of a sample, inside its shard.
struct IndexedMember {
  std::string_view extension;
  int64_t offset = 0;  ///< bytes from the shard's start
  int64_t length = 0;  ///< bytes
};

/// One sample of an index: a view that lives as long as the index.
class CONTRASTIVE_API IndexedSample {
 public:
  IndexedSample(const ShardTable& table, int64_t shard, int64_t row) : table_(&table), shard_(shard), row_(row) {}

  int64_t shard() const { return shard_; }
  std::string_view key() const;
  int64_t num_members() const;
  IndexedMember member(int64_t i) const;

  /// The member with this extension, if the sample has one.
  std::optional<IndexedMember> find(std::string_view extension) const;

  /// ".jpg, .txt", for messages.
  std::string member_list() const;

 private:
  const ShardTable* table_;
  int64_t shard_;
  int64_t row_;
};

struct ShardIndexOptions {
  int64_t threads = 0;                    ///< that index shards at a time; 0: one a core, at most 16
  std::filesystem::path cache_directory;  ///< empty: default_index_directory()
};

/// Where indexes go that can't be beside their shards:
/// `${CONTRASTIVE_CACHE:-${XDG_CACHE_HOME:-~/.cache}/contrastive}/index`. Returns: an empty path if none of these
/// variables, nor HOME, is set.
CONTRASTIVE_API std::filesystem::path default_index_directory();

/// Which samples lie where in a list of shards.
///
/// Consecutive members of a shard that share a key are a sample; a sample never spans two shards. A shard is walked
/// over once; its table is then kept in a file, `<shard>.index` beside it if the folder may be written to (mode bits
/// included, whoever runs this), else `<cache directory>/<sha256 of the shard's absolute path>.index`. A file that is
/// damaged, or was made for a shard of another size or time, is replaced silently. If none can be written, a warning is
/// logged. Thread safety: const after open().
class CONTRASTIVE_API ShardIndex {
 public:
  /// Throws: DataError that names the shards that are missing, damaged, hold an extension twice in a sample, or
  /// change while they are read.
  static ShardIndex open(std::vector<std::filesystem::path> shards, const ShardIndexOptions& options = {});

  int64_t size() const { return begin_.back(); }  ///< samples
  int64_t num_shards() const { return static_cast<int64_t>(shards_.size()); }

  /// Samples [shard_begin(s), shard_begin(s + 1)) lie in shard s, in the archive's order.
  int64_t shard_begin(int64_t shard) const { return begin_.at(static_cast<size_t>(shard)); }

  /// As it was given to open().
  const std::filesystem::path& shard_path(int64_t shard) const { return entry(shard).path; }
  int64_t shard_bytes(int64_t shard) const { return entry(shard).bytes; }
  int64_t shard_mtime_ns(int64_t shard) const { return entry(shard).mtime_ns; }

  /// Throws: DataError unless 0 <= index < size().
  IndexedSample sample(int64_t index) const;

  /// How many of the shards had to be walked over, because there was no valid file for them.
  int64_t num_built() const { return num_built_; }

 private:
  struct Entry {
    std::filesystem::path path;
    int64_t bytes = 0;
    int64_t mtime_ns = 0;
    std::shared_ptr<const ShardTable> table;
  };

  const Entry& entry(int64_t shard) const { return shards_.at(static_cast<size_t>(shard)); }

  std::vector<Entry> shards_;
  std::vector<int64_t> begin_{0};
  int64_t num_built_ = 0;
};

}  // namespace contrastive::data
