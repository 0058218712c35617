#include "data/index_file.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <span>

#include <sys/stat.h>
#include <unistd.h>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"

#include "data/tar_format.h"

namespace contrastive::data {
namespace detail {
namespace {

namespace fs = std::filesystem;

// Layout, little-endian: Header, key_begin, member_begin, member_block, member_length, extension_begin (u32),
// member_extension (u16), keys, extensions (one after the other), checksum (u64) of everything before it.
static_assert(std::endian::native == std::endian::little, "index files are little-endian");

constexpr std::array<char, 8> kMagic{'C', 'T', 'R', 'I', 'D', 'X', '0', '1'};

struct Header {
  std::array<char, 8> magic = kMagic;
  int64_t shard_bytes = 0;
  int64_t shard_mtime_ns = 0;
  uint64_t samples = 0;
  uint64_t members = 0;
  uint64_t extensions = 0;
  uint64_t key_bytes = 0;
  uint64_t extension_bytes = 0;
};
static_assert(sizeof(Header) == 64);

/// Detects damage, not forgery: eight bytes at a time, every step a bijection of the state.
uint64_t checksum(std::string_view bytes) {
  uint64_t hash = 0x9e3779b97f4a7c15 ^ bytes.size();
  while (!bytes.empty()) {
    uint64_t word = 0;
    const auto count = std::min(bytes.size(), sizeof word);
    std::memcpy(&word, bytes.data(), count);
    hash = std::rotl((hash ^ word) * 0xbf58476d1ce4e5b9, 31);
    bytes.remove_prefix(count);
  }
  return hash;
}

template <typename T>
void append(std::string& bytes, const T* values, size_t count) {
  if (count > 0) bytes.append(reinterpret_cast<const char*>(values), count * sizeof(T));
}

/// Takes arrays off the front of the bytes; after one that is longer than what is left, `ok` is false.
struct Cursor {
  std::string_view rest;
  bool ok = true;

  template <typename T, typename Container>
  void take(Container& out, uint64_t count) {
    ok = ok && count <= rest.size() / sizeof(T);
    if (!ok) return;
    out.resize(count);
    if (count > 0) std::memcpy(out.data(), rest.data(), count * sizeof(T));
    rest.remove_prefix(count * sizeof(T));
  }
};

bool is_partition(const std::vector<uint32_t>& begin, uint64_t size) {
  return begin.front() == 0 && begin.back() == size && std::is_sorted(begin.begin(), begin.end());
}

bool is_consistent(const ShardTable& table, int64_t shard_bytes) {
  if (!is_partition(table.key_begin, table.keys.size())) return false;
  if (!is_partition(table.member_begin, table.member_block.size())) return false;
  for (size_t i = 0; i < table.member_block.size(); ++i) {
    if (table.member_extension[i] >= table.extensions.size()) return false;
    if (table.member_block[i] * kTarBlock + table.member_length[i] > shard_bytes) return false;
  }
  return true;
}

/// Asks the mode bits as well: root may write anywhere, but not where nobody is meant to.
bool is_meant_to_be_written(const fs::path& folder) {
  constexpr mode_t kAnyWrite = S_IWUSR | S_IWGRP | S_IWOTH;
  struct stat status {};
  return ::stat(folder.c_str(), &status) == 0 && (status.st_mode & kAnyWrite) != 0 &&
         ::access(folder.c_str(), W_OK) == 0;
}

}  // namespace

std::string encode_index(const ShardTable& table, const FileStamp& shard) {
  std::string extensions;
  std::vector<uint32_t> extension_begin{0};
  for (const auto& extension : table.extensions) {
    extensions += extension;
    extension_begin.push_back(static_cast<uint32_t>(extensions.size()));
  }
  Header header;
  header.shard_bytes = shard.bytes;
  header.shard_mtime_ns = shard.mtime_ns;
  header.samples = static_cast<uint64_t>(table.size());
  header.members = table.member_block.size();
  header.extensions = table.extensions.size();
  header.key_bytes = table.keys.size();
  header.extension_bytes = extensions.size();

  std::string bytes;
  append(bytes, &header, 1);
  append(bytes, table.key_begin.data(), table.key_begin.size());
  append(bytes, table.member_begin.data(), table.member_begin.size());
  append(bytes, table.member_block.data(), table.member_block.size());
  append(bytes, table.member_length.data(), table.member_length.size());
  append(bytes, extension_begin.data(), extension_begin.size());
  append(bytes, table.member_extension.data(), table.member_extension.size());
  bytes += table.keys;
  bytes += extensions;
  const uint64_t sum = checksum(bytes);
  append(bytes, &sum, 1);
  return bytes;
}

std::optional<ShardTable> decode_index(std::string_view bytes, const FileStamp& shard) {
  Header header;
  uint64_t sum = 0;
  if (bytes.size() < sizeof header + sizeof sum) return std::nullopt;
  std::memcpy(&header, bytes.data(), sizeof header);
  std::memcpy(&sum, bytes.data() + bytes.size() - sizeof sum, sizeof sum);
  bytes.remove_suffix(sizeof sum);
  if (header.magic != kMagic || FileStamp{header.shard_bytes, header.shard_mtime_ns} != shard) return std::nullopt;
  if (sum != checksum(bytes)) return std::nullopt;
  if (header.samples >= bytes.size() || header.extensions >= bytes.size()) return std::nullopt;  // before adding 1

  ShardTable table;
  std::vector<uint32_t> extension_begin;
  std::string extensions;
  Cursor cursor{bytes.substr(sizeof header)};
  cursor.take<uint32_t>(table.key_begin, header.samples + 1);
  cursor.take<uint32_t>(table.member_begin, header.samples + 1);
  cursor.take<uint32_t>(table.member_block, header.members);
  cursor.take<uint32_t>(table.member_length, header.members);
  cursor.take<uint32_t>(extension_begin, header.extensions + 1);
  cursor.take<uint16_t>(table.member_extension, header.members);
  cursor.take<char>(table.keys, header.key_bytes);
  cursor.take<char>(extensions, header.extension_bytes);
  if (!cursor.ok || !cursor.rest.empty() || !is_partition(extension_begin, extensions.size())) return std::nullopt;
  for (size_t i = 0; i < header.extensions; ++i) {
    table.extensions.push_back(extensions.substr(extension_begin[i], extension_begin[i + 1] - extension_begin[i]));
  }
  if (!is_consistent(table, shard.bytes)) return std::nullopt;
  return table;
}

std::vector<fs::path> index_places(const fs::path& shard, const fs::path& directory) {
  std::vector<fs::path> places{shard};
  places.front() += ".index";
  if (directory.empty()) return places;
  const auto name = fs::absolute(shard).lexically_normal().string();
  const std::span bytes(reinterpret_cast<const uint8_t*>(name.data()), name.size());
  places.push_back(directory / (sha256_hex(bytes) + ".index"));
  return places;
}

std::optional<ShardTable> load_index(const std::vector<fs::path>& places, const FileStamp& shard) {
  for (const auto& place : places) {
    std::error_code missing;
    if (!fs::is_regular_file(place, missing)) continue;
    try {
      // Every entry of an index stands for a header block of the shard, so it can't be the larger of the two.
      if (auto table = decode_index(read_text_file(place, shard.bytes + int64_t{sizeof(Header)}), shard)) return table;
    } catch (const Error&) {
      continue;  // unreadable is as good as stale
    }
  }
  return std::nullopt;
}

bool store_index(const std::vector<fs::path>& places, const ShardTable& table, const FileStamp& shard) {
  const auto bytes = encode_index(table, shard);
  for (size_t i = 0; i < places.size(); ++i) {
    const auto folder = places[i].has_parent_path() ? places[i].parent_path() : fs::path(".");
    std::error_code error;
    if (i > 0) fs::create_directories(folder, error);
    if (error || !is_meant_to_be_written(folder)) continue;
    try {
      write_file_atomically(places[i], bytes);
      return true;
    } catch (const Error&) {
      continue;  // the next place may do
    }
  }
  return false;
}

}  // namespace detail
}  // namespace contrastive::data
