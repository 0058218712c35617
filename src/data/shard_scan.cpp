#include "data/shard_scan.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <unordered_map>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/data/tar.h"

#include "data/tar_format.h"

namespace contrastive::data {
namespace {

bool is_metadata(std::string_view part) {
  return part.size() >= 4 && part.starts_with("__") && part.ends_with("__");
}

char to_lower(char letter) {
  return letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter - 'A' + 'a') : letter;
}

/// Fills a ShardTable member by member; a sample enters it when the next one begins.
class TableBuilder {
 public:
  TableBuilder(const std::filesystem::path& shard, const detail::DuplicateHandler& on_duplicate, ShardTable& table)
      : shard_(shard), on_duplicate_(on_duplicate), table_(table) {}

  void add(const TarMember& member) {
    const auto name = split_member_name(member.name);
    if (!name) return;
    if (!open_ || name->key != key_) {
      finish();
      key_ = name->key;
      open_ = true;
    }
    const auto extension = extension_number(name->extension);
    const auto first = table_.member_extension.begin() + table_.member_begin.back();
    if (std::find(first, table_.member_extension.end(), extension) != table_.member_extension.end()) {
      on_duplicate_(key_, name->extension);
      return;
    }
    table_.member_block.push_back(fit(member.offset / detail::kTarBlock, "an offset, in blocks,"));
    table_.member_length.push_back(fit(member.size, "a member's length"));
    table_.member_extension.push_back(extension);
  }

  void finish() {
    if (!open_) return;
    table_.keys += key_;
    table_.key_begin.push_back(fit(static_cast<int64_t>(table_.keys.size()), "the length of all keys"));
    table_.member_begin.push_back(fit(static_cast<int64_t>(table_.member_block.size()), "the number of members"));
    open_ = false;
  }

  /// Forgets the sample whose members are still coming. Returns: its key, or nothing.
  std::string abandon() {
    const auto members = table_.member_begin.back();
    table_.member_block.resize(members);
    table_.member_length.resize(members);
    table_.member_extension.resize(members);
    return open_ ? key_ : std::string();
  }

 private:
  uint32_t fit(int64_t value, const char* what) const {
    constexpr auto kMax = std::numeric_limits<uint32_t>::max();
    if (value <= kMax) return static_cast<uint32_t>(value);
    throw DataError(fmt::format("[{}] sample {}: {} is {}, but an index holds at most {}; split the shard",
                                shard_.string(), key_, what, value, kMax));
  }

  uint16_t extension_number(const std::string& extension) {
    const auto known = numbers_.find(extension);
    if (known != numbers_.end()) return known->second;
    constexpr size_t kMax = std::numeric_limits<uint16_t>::max();
    if (numbers_.size() >= kMax) {
      throw DataError(
          fmt::format("[{}] sample {}: the shard has more than {} different extensions", shard_.string(), key_, kMax));
    }
    const auto number = static_cast<uint16_t>(numbers_.size());
    numbers_.emplace(extension, number);
    table_.extensions.push_back(extension);
    return number;
  }

  const std::filesystem::path& shard_;
  const detail::DuplicateHandler& on_duplicate_;
  ShardTable& table_;
  std::unordered_map<std::string, uint16_t> numbers_;
  std::string key_;
  bool open_ = false;
};

}  // namespace

std::optional<MemberName> split_member_name(std::string_view name) {
  const auto folder_end = name.rfind('/');
  const auto base_begin = folder_end == std::string_view::npos ? 0 : folder_end + 1;
  const auto dot = name.find('.', base_begin);
  if (is_metadata(name.substr(0, name.find('/')))) return std::nullopt;
  if (dot == std::string_view::npos || dot == base_begin) return std::nullopt;
  if (is_metadata(name.substr(base_begin, dot - base_begin))) return std::nullopt;
  MemberName parts{name.substr(0, dot), std::string(name.substr(dot + 1))};
  std::transform(parts.extension.begin(), parts.extension.end(), parts.extension.begin(), to_lower);
  return parts;
}

namespace detail {

void scan_shard(const std::filesystem::path& shard, const DuplicateHandler& on_duplicate, ShardScan& scan) {
  TarReader reader(shard);
  TableBuilder builder(shard, on_duplicate, scan.table);
  try {
    for (TarMember member; reader.next(member);) builder.add(member);
    builder.finish();
  } catch (...) {
    scan.unfinished_key = builder.abandon();
    throw;
  }
  scan.has_end_blocks = reader.has_end_blocks();
}

}  // namespace detail
}  // namespace contrastive::data
