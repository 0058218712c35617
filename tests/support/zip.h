#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <zlib.h>

namespace contrastive::test {

/// A member of a zip archive; what is set lies about the data.
struct ZipEntry {
  std::string name;
  std::string data;
  bool deflate = false;
  uint16_t flags = 0;
  bool zip64 = false;  ///< sizes and offset in an extra field
  std::optional<uint16_t> method = {};
  std::optional<uint32_t> crc32 = {};
  std::optional<uint64_t> stored_bytes = {};
  std::optional<uint64_t> bytes = {};
  std::optional<uint64_t> header = {};  ///< where the directory says that the member begins
  std::optional<std::string> local_name = {};
};

struct ZipSettings {
  bool zip64 = false;  ///< an end record of 64 bits
  std::string comment = {};
  std::optional<uint64_t> entries = {};
};

inline std::string little_endian(uint64_t value, size_t bytes) {
  std::string text;
  for (size_t i = 0; i < bytes; ++i) text += static_cast<char>(value >> (8 * i) & 0xff);
  return text;
}

inline std::string deflated(std::string_view data) {
  z_stream stream{};
  deflateInit2(&stream, Z_BEST_COMPRESSION, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  std::string result(deflateBound(&stream, data.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
  stream.avail_in = static_cast<uInt>(data.size());
  stream.next_out = reinterpret_cast<Bytef*>(result.data());
  stream.avail_out = static_cast<uInt>(result.size());
  const int status = ::deflate(&stream, Z_FINISH);
  result.resize(stream.total_out);
  deflateEnd(&stream);
  if (status != Z_STREAM_END) throw std::runtime_error("deflating failed");
  return result;
}

/// A zip archive, byte by byte as APPNOTE 6.3 has it.
inline std::string zip_bytes(const std::vector<ZipEntry>& entries, const ZipSettings& settings = {}) {
  const auto u16 = [](uint64_t value) { return little_endian(value, 2); };
  const auto u32 = [](uint64_t value) { return little_endian(value, 4); };
  const auto u64 = [](uint64_t value) { return little_endian(value, 8); };
  std::string archive, directory;
  for (const auto& entry : entries) {
    const auto stored = entry.deflate ? deflated(entry.data) : entry.data;
    const auto checksum =
        entry.crc32.value_or(::crc32_z(0, reinterpret_cast<const Bytef*>(entry.data.data()), entry.data.size()));
    const uint64_t stored_bytes = entry.stored_bytes.value_or(stored.size());
    const uint64_t bytes = entry.bytes.value_or(entry.data.size());
    const uint64_t header = entry.header.value_or(archive.size());
    const auto wide = u16(1) + u16(24) + u64(bytes) + u64(stored_bytes) + u64(header);
    const auto extra = entry.zip64 ? wide : std::string();
    const auto shown = [&](uint64_t value) { return entry.zip64 ? 0xFFFFFFFF : value; };
    const auto common = u16(entry.flags) + u16(entry.method.value_or(entry.deflate ? 8 : 0)) + u32(0) + u32(checksum) +
                        u32(shown(stored_bytes)) + u32(shown(bytes));
    const auto name = entry.local_name.value_or(entry.name);
    directory += "PK\1\2" + u16(20) + u16(20) + common + u16(entry.name.size()) + u16(extra.size()) + u16(0) + u16(0) +
                 u16(0) + u32(0) + u32(shown(header)) + entry.name + extra;
    archive += "PK\3\4" + u16(20) + common + u16(name.size()) + u16(0) + name + stored;
  }
  const uint64_t count = settings.entries.value_or(entries.size());
  const uint64_t begin = archive.size();
  archive += directory;
  if (settings.zip64) {
    const uint64_t record = archive.size();
    archive += "PK\6\6" + u64(44) + u16(45) + u16(45) + u32(0) + u32(0) + u64(count) + u64(count) +
               u64(directory.size()) + u64(begin);
    archive += "PK\6\7" + u32(0) + u64(record) + u32(1);
  }
  const auto shown = [&](uint64_t value) { return settings.zip64 ? ~uint64_t{0} : value; };
  return archive + "PK\5\6" + u16(0) + u16(0) + u16(shown(count)) + u16(shown(count)) + u32(shown(directory.size())) +
         u32(shown(begin)) + u16(settings.comment.size()) + settings.comment;
}

}  // namespace contrastive::test
