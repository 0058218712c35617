#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "contrastive/core/export.h"

namespace contrastive::data {

/// A regular file inside a tar archive.
struct TarMember {
  std::string name;
  int64_t offset = 0;  ///< of the content, in bytes from the archive's start
  int64_t size = 0;    ///< of the content, in bytes
};

/// Walks over the members of a tar archive without reading their content.
///
/// Understands v7, ustar, GNU long names and base-256 numbers, and PAX headers (path, size). Folders, links, devices
/// and unknown kinds are passed over. Every header's checksum is verified, and every size is held against the file's
/// size before it is used.
/// Two blocks of zeros end the archive, and what follows them is ignored. They may be missing if the file ends where
/// a member ends.
/// Throws: DataError naming file and offset if the archive is damaged, truncated, compressed, or has sparse members.
/// Source: POSIX.1-2017 pax (ustar interchange format, extended headers); the GNU tar manual, "Tar Internals".
class CONTRASTIVE_API TarReader {
 public:
  explicit TarReader(const std::filesystem::path& archive);
  ~TarReader();
  TarReader(TarReader&&) noexcept;
  TarReader& operator=(TarReader&&) noexcept;

  /// Moves to the next regular file. Returns: false at the end of the archive; `member` is then untouched.
  bool next(TarMember& member);

  /// Whether the end blocks were there; meaningful once next() has returned false. Without them the archive may have
  /// been cut between two members.
  bool has_end_blocks() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

/// Writes a tar archive that depends on nothing but the names and contents added: time 0, user and group 0, mode 0644.
///
/// The format is ustar, with a PAX header for a name that doesn't fit. The archive appears under its name when close()
/// returns, and replaces what was there; without close() nothing remains.
/// Throws: DataError if a name is empty, ends with a slash or holds a zero byte; Error naming the file and the
/// system's reason if writing fails (disk full, ...).
class CONTRASTIVE_API TarWriter {
 public:
  explicit TarWriter(const std::filesystem::path& archive);
  ~TarWriter();
  TarWriter(TarWriter&&) noexcept;
  TarWriter& operator=(TarWriter&&) noexcept;

  void add(std::string_view name, std::span<const uint8_t> content);
  void add(std::string_view name, std::string_view content);
  void close();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace contrastive::data
