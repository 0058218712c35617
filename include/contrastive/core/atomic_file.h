#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

#include "contrastive/core/export.h"

namespace contrastive {

/// A file written beside its place and renamed by commit(); without commit() nothing remains.
/// Throws: Error naming the file and the system's reason.
class CONTRASTIVE_API AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path target);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::string_view bytes);

  /// Flushes the content to disk, renames, flushes the folder.
  void commit();

 private:
  [[noreturn]] void fail(const char* operation) const;

  std::filesystem::path target_;
  std::filesystem::path temporary_;
  int descriptor_;
};

}  // namespace contrastive
