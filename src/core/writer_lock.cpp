#include "contrastive/core/writer_lock.h"

#include <cerrno>
#include <cstring>
#include <string>
#include <system_error>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include "contrastive/core/error.h"

namespace contrastive {

namespace fs = std::filesystem;

void make_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (fs::is_directory(folder)) return;
  throw ConfigError(fmt::format("[{}] can't be made: {}", folder.string(),
                                error ? error.message() : std::string("something else has this name")));
}

WriterLock::WriterLock(const fs::path& lock_file, const fs::path& written)
    : descriptor_(::open(lock_file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
  if (descriptor_ < 0) throw Error(fmt::format("[{}] can't be made: {}", lock_file.string(), std::strerror(errno)));
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) == 0) return;
  const int reason = errno;
  ::close(descriptor_);
  if (reason == EWOULDBLOCK) {
    throw ConfigError(fmt::format("[{}] is being written by another process", written.string()));
  }
  throw Error(fmt::format("[{}] can't be locked: {}", lock_file.string(), std::strerror(reason)));
}

WriterLock::~WriterLock() {
  ::close(descriptor_);
}

}  // namespace contrastive
