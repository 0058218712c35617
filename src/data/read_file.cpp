#include "data/read_file.h"

#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include "contrastive/core/error.h"

namespace contrastive::data::detail {
namespace {

FileStamp stamp_of(const struct stat& status) {
  return {status.st_size, status.st_mtim.tv_sec * 1'000'000'000 + status.st_mtim.tv_nsec};
}

}  // namespace

ReadFile::ReadFile(const std::filesystem::path& path) {
  // O_NONBLOCK: a FIFO in the list must fail below instead of waiting for a writer.
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) throw DataError(fmt::format("the file can't be opened: {}", std::strerror(errno)));
  struct stat status {};
  if (::fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode)) {
    stamp_ = stamp_of(status);
    return;
  }
  ::close(descriptor_);
  throw DataError("is not a regular file");
}

ReadFile::~ReadFile() {
  ::close(descriptor_);
}

FileStamp ReadFile::current_stamp() const {
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) throw DataError(fmt::format("fstat failed: {}", std::strerror(errno)));
  return stamp_of(status);
}

void ReadFile::read(int64_t offset, std::span<uint8_t> out) const {
  while (!out.empty()) {
    const ssize_t count = ::pread(descriptor_, out.data(), out.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw DataError(fmt::format("reading at offset {} failed: {}", offset, std::strerror(errno)));
    if (count == 0) {
      throw DataError(fmt::format("the file has shrunk: it ended at {} of the {} bytes it had when it was opened",
                                  offset, stamp_.bytes));
    }
    offset += count;
    out = out.subspan(static_cast<size_t>(count));
  }
}

}  // namespace contrastive::data::detail
