#include "contrastive/core/file.h"

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <optional>
#include <vector>

#include <dlfcn.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "contrastive/core/atomic_file.h"
#include "contrastive/core/error.h"

namespace contrastive {
namespace fs = std::filesystem;

AtomicFile::AtomicFile(fs::path target) : target_(std::move(target)), temporary_(target_) {
  static std::atomic<uint64_t> number{0};  // two threads may write the same file
  temporary_ += fmt::format(".partial-{}-{}", getpid(), number++);
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor_ < 0) fail("creating");
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("writing");
    bytes.remove_prefix(static_cast<size_t>(written));
  }
}

void AtomicFile::commit() {
  if (::fsync(descriptor_) != 0) fail("flushing");
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail("renaming to");
  ::close(descriptor_);
  descriptor_ = -1;
  flush_directory(target_.has_parent_path() ? target_.parent_path() : fs::path("."));
}

void AtomicFile::fail(const char* operation) const {
  throw Error(fmt::format("[{}] {} the file failed: {}", target_.string(), operation, std::strerror(errno)));
}

std::string read_text_file(const fs::path& file, int64_t max_bytes) {
  std::error_code error;
  const auto size = fs::file_size(file, error);
  if (error) throw Error(fmt::format("[{}] can't be read: {}", file.string(), error.message()));
  if (size > static_cast<uintmax_t>(max_bytes)) {
    throw Error(fmt::format("[{}] has {} bytes, but at most {} are expected here", file.string(), size, max_bytes));
  }
  std::ifstream stream(file, std::ios::binary);
  std::string content(size, '\0');
  if (!stream.read(content.data(), static_cast<std::streamsize>(size))) {
    throw Error(fmt::format("[{}] can't be read: {}", file.string(), std::strerror(errno)));
  }
  return content;
}

void write_file_atomically(const fs::path& file, std::string_view content) {
  AtomicFile writer(file);
  writer.write(content);
  writer.commit();
}

void flush_directory(const fs::path& directory) {
  const int descriptor = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) throw Error(fmt::format("[{}] can't be opened: {}", directory.string(), std::strerror(errno)));
  ::fsync(descriptor);  // some file systems refuse to flush folders; the rename itself has happened
  ::close(descriptor);
}

MappedFile::MappedFile(const fs::path& file) {
  // Without O_NONBLOCK, opening a named pipe would wait for a writer.
  const int descriptor = ::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) throw Error(fmt::format("[{}] can't be opened: {}", file.string(), std::strerror(errno)));
  struct stat status {};
  const bool is_file = ::fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
  const auto size = is_file ? static_cast<size_t>(status.st_size) : 0;
  void* address = size > 0 ? ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0) : nullptr;
  const int reason = errno;
  ::close(descriptor);
  if (!is_file) throw Error(fmt::format("[{}] is not a regular file", file.string()));
  if (address == MAP_FAILED) throw Error(fmt::format("[{}] can't be mapped: {}", file.string(), std::strerror(reason)));
  bytes_ = {static_cast<const uint8_t*>(address), size};
}

void MappedFile::release(size_t offset, size_t size) const noexcept {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto start = reinterpret_cast<uintptr_t>(bytes_.data()) + offset;
  const auto begin = (start + page - 1) / page * page, end = (start + size) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);  // only advice
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<uint8_t*>(bytes_.data()), bytes_.size());
}

namespace {

/// <prefix>/share/contrastive of the installation or build that this very library was loaded from.
std::optional<fs::path> resources_beside_library() {
  Dl_info info{};
  if (::dladdr(reinterpret_cast<const void*>(&resources_beside_library), &info) == 0) return std::nullopt;
  std::error_code error;
  const auto library = fs::canonical(info.dli_fname, error);
  if (error) return std::nullopt;
  return library.parent_path().parent_path() / "share" / "contrastive";
}

}  // namespace

fs::path find_resource(const fs::path& relative) {
  std::vector<fs::path> roots;
  if (const char* root = std::getenv("CONTRASTIVE_RESOURCES")) roots.emplace_back(root);
  if (const auto root = resources_beside_library()) roots.push_back(*root);
  roots.emplace_back(CONTRASTIVE_INSTALLED_RESOURCES);
  std::string places;
  std::error_code error;
  for (const auto& root : roots) {
    if (fs::exists(root / relative, error)) return root / relative;
    places += (places.empty() ? "" : ", ") + (root / relative).string();
  }
  throw Error(fmt::format("[{}] not found; looked at: {}", relative.string(), places));
}

}  // namespace contrastive
