#include "core/zip_archive.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include <fmt/format.h>
#include <zlib.h>

#include "contrastive/core/error.h"

#include "core/shown.h"

namespace contrastive::detail {
namespace {

static_assert(std::endian::native == std::endian::little, "zip's numbers are little-endian and read as they lie");

constexpr uint32_t kEndSignature = 0x06054b50;
constexpr uint32_t kZip64EndSignature = 0x06064b50;
constexpr uint32_t kZip64LocatorSignature = 0x07064b50;
constexpr uint32_t kEntrySignature = 0x02014b50;
constexpr uint32_t kLocalSignature = 0x04034b50;
constexpr uint64_t kEndBytes = 22;
constexpr uint64_t kZip64EndBytes = 56;
constexpr uint64_t kZip64LocatorBytes = 20;
constexpr uint64_t kEntryBytes = 46;
constexpr uint64_t kLocalBytes = 30;
constexpr uint64_t kMaxCommentBytes = 0xFFFF;
constexpr uint16_t kZip64Extra = 0x0001;
/// Traditional encryption, strong encryption, and a directory whose values are masked.
constexpr uint16_t kEncryptedFlags = 0x0001 | 0x0040 | 0x2000;
constexpr uint16_t kStored = 0;
constexpr uint16_t kDeflated = 8;
/// PyTorch stores tensors as they are. Someone may have repacked a file, and weights hardly shrink; zeros do.
constexpr uint64_t kMaxInflation = 16;
constexpr uint64_t kFreeInflatedBytes = 64 << 20;

uint64_t saturating_add(uint64_t a, uint64_t b) {
  return a > std::numeric_limits<uint64_t>::max() - b ? std::numeric_limits<uint64_t>::max() : a + b;
}

uint32_t checksum(std::span<const uint8_t> bytes) {
  return static_cast<uint32_t>(::crc32_z(0, bytes.data(), bytes.size()));
}

/// Inflates raw deflate data; whether it ended exactly at the end of `target`.
bool inflate_exactly(std::span<const uint8_t> source, std::span<uint8_t> target) {
  constexpr size_t kStep = 1 << 30;  // zlib counts in 32 bits
  z_stream stream{};
  if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) return false;
  uint8_t nothing = 0;  // zlib wants a place to write to even where nothing is expected
  stream.next_in = const_cast<uint8_t*>(source.data());
  stream.next_out = target.empty() ? &nothing : target.data();
  size_t source_left = source.size();
  size_t target_left = target.size();
  int status = Z_OK;
  while (status == Z_OK) {
    if (stream.avail_in == 0) {
      stream.avail_in = static_cast<uInt>(std::min(source_left, kStep));
      source_left -= stream.avail_in;
    }
    if (stream.avail_out == 0) {
      stream.avail_out = static_cast<uInt>(std::min(target_left, kStep));
      target_left -= stream.avail_out;
    }
    status = inflate(&stream, Z_NO_FLUSH);
  }
  const bool is_whole =
      status == Z_STREAM_END && stream.avail_in == 0 && source_left == 0 && stream.avail_out == 0 && target_left == 0;
  inflateEnd(&stream);
  return is_whole;
}

}  // namespace

/// Where the list of members lies.
struct ZipArchive::Directory {
  uint64_t entries;
  uint64_t begin;
  uint64_t bytes;
  uint64_t end;  ///< where the records after the directory begin
};

/// What a member takes up: header, name and data.
struct ZipArchive::Extent {
  uint64_t begin;
  uint64_t end;
  std::string_view name;
};

ZipArchive::ZipArchive(std::string where, std::span<const uint8_t> archive)
    : where_(std::move(where)), archive_(archive) {
  const auto directory = read_end_record();
  std::vector<Extent> extents;
  uint64_t position = directory.begin;
  for (uint64_t i = 0; i < directory.entries; ++i) position = read_entry(position, directory, extents);
  if (position != directory.end) fail("is damaged: its directory does not hold as many members as it claims");
  refuse_overlaps(extents);
  std::sort(members_.begin(), members_.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  refuse_duplicates();
  bound_inflation();
}

const ZipMember* ZipArchive::find(std::string_view name) const {
  const auto found = std::lower_bound(members_.begin(), members_.end(), name,
                                      [](const ZipMember& member, std::string_view key) { return member.name < key; });
  return found != members_.end() && found->name == name ? &*found : nullptr;
}

std::span<const uint8_t> ZipArchive::stored(const ZipMember& member) const {
  return archive_.subspan(member.begin, member.stored_bytes);
}

void ZipArchive::read(const ZipMember& member, std::span<uint8_t> target) const {
  CONTRASTIVE_INTERNAL_ASSERT(target.size() == member.bytes);
  if (!member.is_deflated) {
    // torch.save can be told to leave checksums out, so that those of stored members mean nothing.
    if (!target.empty()) std::memcpy(target.data(), stored(member).data(), target.size());
  } else if (!inflate_exactly(stored(member), target) || checksum(target) != member.crc32) {
    fail(fmt::format("zip member '{}' does not inflate to the {} bytes that were stored; the file is damaged",
                     shown(member.name), member.bytes));
  }
}

void ZipArchive::fail(const std::string& message) const {
  throw CheckpointError(fmt::format("[{}] {}", where_, message));
}

/// The caller has checked that the number lies within the archive.
template <typename Integer>
Integer ZipArchive::get(uint64_t position) const {
  Integer value;
  std::memcpy(&value, archive_.data() + position, sizeof(value));
  return value;
}

std::string_view ZipArchive::text(uint64_t position, uint64_t size) const {
  return {reinterpret_cast<const char*>(archive_.data()) + position, size};
}

uint64_t ZipArchive::find_end_record() const {
  const uint64_t size = archive_.size();
  const uint64_t last = size >= kEndBytes ? size - kEndBytes : 0;
  for (uint64_t tail = 0; size >= kEndBytes && tail <= std::min(last, kMaxCommentBytes); ++tail) {
    const uint64_t position = last - tail;
    if (get<uint32_t>(position) == kEndSignature && get<uint16_t>(position + 20) == tail) return position;
  }
  fail(fmt::format("has {} bytes without the end of a zip archive; the file is truncated or damaged", size));
}

ZipArchive::Directory ZipArchive::read_end_record() const {
  const uint64_t record = find_end_record();
  if (get<uint16_t>(record + 4) != get<uint16_t>(record + 6)) fail("is one part of a split zip archive");
  Directory directory{.entries = get<uint16_t>(record + 10),
                      .begin = get<uint32_t>(record + 16),
                      .bytes = get<uint32_t>(record + 12),
                      .end = record};
  widen_from_zip64(record, directory);
  if (directory.begin > directory.end || directory.bytes != directory.end - directory.begin ||
      directory.entries > directory.bytes / kEntryBytes) {
    fail(
        fmt::format("claims a directory of {} members in {} bytes at {}, which does not fit the file; the file is "
                    "truncated or damaged",
                    directory.entries, directory.bytes, directory.begin));
  }
  return directory;
}

void ZipArchive::widen_from_zip64(uint64_t end_record, Directory& directory) const {
  if (end_record < kZip64LocatorBytes) return;
  const uint64_t locator = end_record - kZip64LocatorBytes;
  if (get<uint32_t>(locator) != kZip64LocatorSignature) return;
  const auto record = get<uint64_t>(locator + 8);
  // The record states its size without its first 12 bytes.
  if (record > locator || locator - record < kZip64EndBytes || get<uint32_t>(record) != kZip64EndSignature ||
      get<uint64_t>(record + 4) != locator - record - 12) {
    fail("has a damaged zip64 end record");
  }
  const auto widen = [&](uint64_t& field, uint64_t saturated, uint64_t wide) {
    if (field != saturated && field != wide) fail("has two zip end records that contradict each other");
    field = wide;
  };
  widen(directory.entries, 0xFFFF, get<uint64_t>(record + 32));
  widen(directory.bytes, 0xFFFFFFFF, get<uint64_t>(record + 40));
  widen(directory.begin, 0xFFFFFFFF, get<uint64_t>(record + 48));
  directory.end = record;
}

uint64_t ZipArchive::read_entry(uint64_t position, const Directory& directory, std::vector<Extent>& extents) {
  const auto damaged = [&] { fail(fmt::format("has a damaged zip directory at byte {}", position)); };
  if (directory.end - position < kEntryBytes || get<uint32_t>(position) != kEntrySignature) damaged();
  const uint64_t name_bytes = get<uint16_t>(position + 28);
  const uint64_t extra_bytes = get<uint16_t>(position + 30);
  const uint64_t entry_bytes = kEntryBytes + name_bytes + extra_bytes + get<uint16_t>(position + 32);
  if (directory.end - position < entry_bytes) damaged();

  ZipMember member{.name = text(position + kEntryBytes, name_bytes),
                   .begin = 0,
                   .stored_bytes = get<uint32_t>(position + 20),
                   .bytes = get<uint32_t>(position + 24),
                   .crc32 = get<uint32_t>(position + 16),
                   .is_deflated = get<uint16_t>(position + 10) == kDeflated};
  if ((get<uint16_t>(position + 8) & kEncryptedFlags) != 0) {
    fail(fmt::format("zip member '{}' is encrypted", shown(member.name)));
  }
  if (const auto method = get<uint16_t>(position + 10); method != kStored && method != kDeflated) {
    fail(fmt::format("zip member '{}' has compression {}; only stored and deflated members are supported",
                     shown(member.name), method));
  }
  uint64_t header = get<uint32_t>(position + 42);
  widen_entry(text(position + kEntryBytes + name_bytes, extra_bytes), member, header);
  member.begin = data_begin(header, directory.begin, member);
  if (!member.is_deflated && member.bytes != member.stored_bytes) {
    fail(fmt::format("zip member '{}' is stored with two sizes, {} and {}", shown(member.name), member.stored_bytes,
                     member.bytes));
  }
  extents.push_back({header, member.begin + member.stored_bytes, member.name});
  total_bytes_ = saturating_add(total_bytes_, member.bytes);
  members_.push_back(member);
  return position + entry_bytes;
}

/// Sizes and the offset that do not fit 32 bits stand, in this order, in an extra field.
void ZipArchive::widen_entry(std::string_view extra, ZipMember& member, uint64_t& header) const {
  const auto number = [&](size_t position, size_t size) {
    uint64_t value = 0;
    std::memcpy(&value, extra.data() + position, size);
    return value;
  };
  size_t position = 0;
  std::string_view wide;
  while (extra.size() - position >= 4) {
    const size_t size = number(position + 2, 2);
    if (size > extra.size() - position - 4) break;
    if (number(position, 2) == kZip64Extra) wide = extra.substr(position + 4, size);
    position += 4 + size;
  }
  for (uint64_t* field : {&member.bytes, &member.stored_bytes, &header}) {
    if (*field != 0xFFFFFFFF) continue;
    if (wide.size() < sizeof(*field)) fail(fmt::format("zip member '{}' has no zip64 sizes", shown(member.name)));
    std::memcpy(field, wide.data(), sizeof(*field));
    wide.remove_prefix(sizeof(*field));
  }
}

/// Checks the member's own header against the directory. `end`: where the members must end.
uint64_t ZipArchive::data_begin(uint64_t header, uint64_t end, const ZipMember& member) const {
  const auto outside = [&] {
    fail(
        fmt::format("zip member '{}' claims {} bytes at {}, outside of the {} bytes before the directory; the file is "
                    "truncated or damaged",
                    shown(member.name), member.stored_bytes, header, end));
  };
  if (header > end || end - header < kLocalBytes) outside();
  const uint64_t name_bytes = get<uint16_t>(header + 26);
  const uint64_t begin = header + kLocalBytes + name_bytes + get<uint16_t>(header + 28);
  if (begin > end || end - begin < member.stored_bytes) outside();
  if (get<uint32_t>(header) != kLocalSignature || text(header + kLocalBytes, name_bytes) != member.name) {
    fail(fmt::format("zip member '{}' has another name in its own header; the file is damaged", shown(member.name)));
  }
  return begin;
}

void ZipArchive::refuse_overlaps(std::vector<Extent>& extents) const {
  std::sort(extents.begin(), extents.end(), [](const auto& a, const auto& b) { return a.begin < b.begin; });
  for (size_t i = 1; i < extents.size(); ++i) {
    if (extents[i].begin < extents[i - 1].end) {
      fail(fmt::format("zip members '{}' and '{}' overlap", shown(extents[i - 1].name), shown(extents[i].name)));
    }
  }
}

void ZipArchive::refuse_duplicates() const {
  for (size_t i = 1; i < members_.size(); ++i) {
    if (members_[i].name == members_[i - 1].name) {
      fail(fmt::format("has two zip members named '{}'", shown(members_[i].name)));
    }
  }
}

void ZipArchive::bound_inflation() const {
  uint64_t inflated = 0;
  for (const auto& member : members_) inflated = saturating_add(inflated, member.is_deflated ? member.bytes : 0);
  const uint64_t most = archive_.size() * kMaxInflation + kFreeInflatedBytes;
  if (inflated > most) {
    fail(fmt::format("would inflate to {} bytes, more than the {} that are accepted of a file of {}", inflated, most,
                     archive_.size()));
  }
}

}  // namespace contrastive::detail
