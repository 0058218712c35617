#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "contrastive/core/atomic_file.h"
#include "contrastive/core/error.h"
#include "contrastive/data/tar.h"

#include "data/tar_format.h"

namespace contrastive::data {
namespace {

using detail::TarHeader;

constexpr int64_t kMaxOctalSize = (int64_t{1} << 33) - 1;  // 11 octal digits
constexpr size_t kBufferBytes = 1 << 20;

/// Prefix and name of a path that fits ustar's two fields, or nothing.
std::optional<std::pair<std::string_view, std::string_view>> split_for_ustar(std::string_view path) {
  if (path.size() <= sizeof TarHeader::name) return std::pair{std::string_view(), path};
  const auto slash = path.rfind('/', sizeof TarHeader::prefix);
  if (slash == std::string_view::npos || slash == 0) return std::nullopt;
  const auto name = path.substr(slash + 1);
  if (name.empty() || name.size() > sizeof TarHeader::name) return std::nullopt;
  return std::pair{path.substr(0, slash), name};
}

template <size_t N>
void put(char (&field)[N], std::string_view text) {
  std::copy_n(text.data(), std::min(text.size(), N), field);
}

TarHeader make_header(std::string_view prefix, std::string_view name, int64_t size, char type) {
  TarHeader header{};
  put(header.name, name);
  put(header.mode, "0000644");
  put(header.uid, "0000000");
  put(header.gid, "0000000");
  put(header.size, fmt::format("{:011o}", size));
  put(header.mtime, "00000000000");
  put(header.checksum, "        ");
  header.type = type;
  put(header.magic, "ustar");
  put(header.version, "00");
  put(header.prefix, prefix);
  const auto* bytes = reinterpret_cast<const unsigned char*>(&header);
  int64_t sum = 0;
  for (size_t i = 0; i < sizeof header; ++i) sum += bytes[i];
  put(header.checksum, fmt::format("{:06o}", sum));
  header.checksum[6] = '\0';
  return header;
}

/// "LENGTH path=VALUE\n", where LENGTH counts its own digits too.
std::string pax_path_record(std::string_view path) {
  const size_t rest = std::string_view(" path=\n").size() + path.size();
  size_t length = rest + 1;
  while (fmt::formatted_size("{}", length) + rest != length) ++length;
  return fmt::format("{} path={}\n", length, path);
}

}  // namespace

class TarWriter::Impl {
 public:
  explicit Impl(const std::filesystem::path& archive) : path_(archive), file_(archive) {}

  void add(std::string_view name, std::string_view content) {
    check(name, content);
    const auto parts = split_for_ustar(name);
    if (!parts) {
      const auto record = pax_path_record(name);
      put_header(make_header("", "PaxHeaders/long_name", static_cast<int64_t>(record.size()), 'x'));
      put_content(record);
    }
    const auto [prefix, short_name] =
        parts.value_or(std::pair{std::string_view(), name.substr(0, sizeof TarHeader::name)});
    put_header(make_header(prefix, short_name, static_cast<int64_t>(content.size()), '0'));
    put_content(content);
  }

  void close() {
    buffer_.append(2 * detail::kTarBlock, '\0');
    flush();
    file_.commit();
  }

 private:
  void check(std::string_view name, std::string_view content) const {
    if (name.empty() || name.ends_with('/') || name.find('\0') != std::string_view::npos) {
      throw DataError(fmt::format("[{}] can't be the name of a tar member: \"{}\"", path_.string(), name));
    }
    if (static_cast<int64_t>(content.size()) > kMaxOctalSize) {
      throw DataError(fmt::format("[{}] \"{}\" has {} bytes, but a member may have at most {}", path_.string(), name,
                                  content.size(), kMaxOctalSize));
    }
  }

  void put_header(const TarHeader& header) { put_bytes({reinterpret_cast<const char*>(&header), sizeof header}); }

  void put_content(std::string_view content) {
    put_bytes(content);
    const auto size = static_cast<int64_t>(content.size());
    buffer_.append(static_cast<size_t>(detail::padded_to_block(size) - size), '\0');
  }

  void put_bytes(std::string_view bytes) {
    if (buffer_.size() + bytes.size() > kBufferBytes) flush();
    if (bytes.size() > kBufferBytes) {
      file_.write(bytes);
    } else {
      buffer_ += bytes;
    }
  }

  void flush() {
    file_.write(buffer_);
    buffer_.clear();
  }

  std::filesystem::path path_;
  AtomicFile file_;
  std::string buffer_;
};

TarWriter::TarWriter(const std::filesystem::path& archive) : impl_(std::make_unique<Impl>(archive)) {}
TarWriter::~TarWriter() = default;
TarWriter::TarWriter(TarWriter&&) noexcept = default;
TarWriter& TarWriter::operator=(TarWriter&&) noexcept = default;

void TarWriter::add(std::string_view name, std::span<const uint8_t> content) {
  add(name, std::string_view(reinterpret_cast<const char*>(content.data()), content.size()));
}

void TarWriter::add(std::string_view name, std::string_view content) {
  if (!impl_) throw Error("[TarWriter] add() was called after close()");
  impl_->add(name, content);
}

void TarWriter::close() {
  if (!impl_) throw Error("[TarWriter] close() was called twice");
  const auto impl = std::move(impl_);
  impl->close();
}

}  // namespace contrastive::data
