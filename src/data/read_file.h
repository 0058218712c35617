#pragma once

#include <cstdint>
#include <filesystem>
#include <span>

namespace contrastive::data::detail {

/// What tells one state of a file from another.
struct FileStamp {
  int64_t bytes = 0;
  int64_t mtime_ns = 0;

  bool operator==(const FileStamp&) const = default;
};

/// A regular file opened for positional reads, which may run in any number of threads.
/// Throws: DataError with the reason but without the path: the caller names the object its own way.
class ReadFile {
 public:
  explicit ReadFile(const std::filesystem::path& path);
  ~ReadFile();
  ReadFile(const ReadFile&) = delete;
  ReadFile& operator=(const ReadFile&) = delete;

  /// Size and time as they were when the file was opened.
  const FileStamp& stamp() const { return stamp_; }

  /// Size and time now.
  FileStamp current_stamp() const;

  /// Fills `out` from the bytes at `offset`; an earlier end of the file is an error.
  void read(int64_t offset, std::span<uint8_t> out) const;

 private:
  int descriptor_;
  FileStamp stamp_;
};

}  // namespace contrastive::data::detail
