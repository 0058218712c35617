#pragma once

#include <filesystem>

#include "contrastive/core/export.h"

namespace contrastive {

/// Makes a folder unless it is there. Throws: ConfigError that names it and the reason.
CONTRASTIVE_API void make_folder(const std::filesystem::path& folder);

/// Held by the process that writes something, and given up with it, however it ends.
class CONTRASTIVE_API WriterLock {
 public:
  /// `lock_file` is made and stays. Throws: ConfigError that says that `written` is being written, if another process
  /// holds the lock; Error if the file can't be made or locked.
  WriterLock(const std::filesystem::path& lock_file, const std::filesystem::path& written);
  ~WriterLock();
  WriterLock(const WriterLock&) = delete;
  WriterLock& operator=(const WriterLock&) = delete;

 private:
  int descriptor_;
};

}  // namespace contrastive
