#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "contrastive/core/export.h"

namespace contrastive {

/// The whole content of a regular file. Throws: Error if it can't be read or is larger than `max_bytes`.
CONTRASTIVE_API std::string read_text_file(const std::filesystem::path& file, int64_t max_bytes = 64 << 20);

/// Writes a file so that a reader, or a machine that loses power, sees the old content or the new, never a part:
/// beside its place, flushed to disk, renamed. Throws: Error naming the file and the system's reason (disk full, ...);
/// what was there before stays.
CONTRASTIVE_API void write_file_atomically(const std::filesystem::path& file, std::string_view content);

/// Flushes a folder's entries (renames, new files) to disk.
CONTRASTIVE_API void flush_directory(const std::filesystem::path& directory);

/// A file mapped read-only into memory; the mapping lives as long as the object.
class CONTRASTIVE_API MappedFile {
 public:
  /// Throws: Error if the file can't be opened or mapped.
  explicit MappedFile(const std::filesystem::path& file);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const uint8_t> bytes() const { return bytes_; }

  /// Gives the memory of whole pages in [offset, offset + size) back; they are read again when looked at.
  void release(size_t offset, size_t size) const noexcept;

 private:
  std::span<const uint8_t> bytes_;
};

/// A data file shipped with the library (CLIP's merges, configs): `relative` is looked up under $CONTRASTIVE_RESOURCES,
/// then in share/contrastive of the prefix that the library was loaded from, then in that of the configured prefix.
/// Throws: Error that lists the places looked at.
CONTRASTIVE_API std::filesystem::path find_resource(const std::filesystem::path& relative);

}  // namespace contrastive
