#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>
#include <vector>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/data/tar.h"

#include "data/read_file.h"
#include "data/tar_format.h"

namespace contrastive::data {
namespace {

using detail::kTarBlock;
using detail::TarHeader;

constexpr int64_t kReadAhead = 32 * kTarBlock;
constexpr int64_t kMaxLongName = 64 << 10;
constexpr int64_t kMaxPaxHeader = 1 << 20;

template <size_t N>
std::string_view field(const char (&text)[N]) {
  return {text, ::strnlen(text, N)};
}

/// What GNU and PAX headers say about the member that follows them.
struct Override {
  std::optional<std::string> name;
  std::optional<int64_t> size;
  bool sparse = false;
  bool pending = false;  ///< a header was seen, so a member has to follow
};

bool is_zero_block(const TarHeader& header) {
  const auto* bytes = reinterpret_cast<const char*>(&header);
  return std::all_of(bytes, bytes + kTarBlock, [](char byte) { return byte == 0; });
}

std::string name_in(const TarHeader& header) {
  // Only ustar has a prefix there; old GNU archives keep times in its place.
  const bool is_ustar = std::memcmp(header.magic, "ustar", sizeof header.magic) == 0;
  const auto name = field(header.name);
  const auto prefix = is_ustar ? field(header.prefix) : std::string_view();
  return prefix.empty() ? std::string(name) : fmt::format("{}/{}", prefix, name);
}

bool carries_no_content(char type) {
  return type >= '1' && type <= '6';  // links, devices, folders, FIFOs: their size field counts nothing in the archive
}

/// "gzip" and the like if the file starts as a compressed one.
const char* compression_of(const TarHeader& header) {
  const std::string_view start(header.name, 6);
  if (start.starts_with("\x1f\x8b")) return "gzip";
  if (start.starts_with("\x28\xb5\x2f\xfd")) return "zstd";
  if (start.starts_with("BZh")) return "bzip2";
  if (start.starts_with("\xfd"
                        "7zXZ"))
    return "xz";
  return nullptr;
}

}  // namespace

class TarReader::Impl {
 public:
  explicit Impl(const std::filesystem::path& archive) : path_(archive), file_(open(archive)) {
    if (file_bytes() == 0) fail(0, "the file is empty");
  }

  bool next(TarMember& member) {
    Override override;
    while (!ended_) {
      if (offset_ == file_bytes()) {
        if (override.pending) fail(offset_, "the file ends where a member's own header should follow");
        ended_ = true;
        break;
      }
      const auto header = read_header();
      if (!header) {
        if (override.pending) fail(offset_, "a zero block stands where a member's own header should follow");
        finish();
        break;
      }
      if (take(*header, override, member)) return true;
    }
    return false;
  }

  bool has_end_blocks() const { return has_end_blocks_; }

 private:
  std::unique_ptr<detail::ReadFile> open(const std::filesystem::path& archive) const {
    try {
      return std::make_unique<detail::ReadFile>(archive);
    } catch (const DataError& error) {
      throw DataError(fmt::format("[{}] {}", archive.string(), error.what()));
    }
  }

  int64_t file_bytes() const { return file_->stamp().bytes; }

  [[noreturn]] void fail(int64_t offset, const std::string& reason) const {
    throw DataError(fmt::format("[{}] damaged tar archive at offset {}: {}", path_.string(), offset, reason));
  }

  void read(int64_t offset, std::span<uint8_t> out) const {
    try {
      file_->read(offset, out);
    } catch (const DataError& error) {
      throw DataError(fmt::format("[{}] {}", path_.string(), error.what()));
    }
  }

  /// Reads a block, and some more at once: small members make headers lie close together.
  TarHeader read_block(int64_t offset) {
    if (file_bytes() - offset < kTarBlock) {
      fail(offset,
           fmt::format("truncated: a header needs {} bytes, but only {} are left", kTarBlock, file_bytes() - offset));
    }
    const auto window_end = window_begin_ + static_cast<int64_t>(window_.size());
    if (offset < window_begin_ || offset + kTarBlock > window_end) {
      window_.resize(static_cast<size_t>(std::min(kReadAhead, file_bytes() - offset)));
      window_begin_ = offset;
      read(offset, window_);
    }
    TarHeader header;
    std::memcpy(&header, window_.data() + (offset - window_begin_), sizeof header);
    return header;
  }

  /// The verified header at the current offset, or nothing if the block is all zeros.
  std::optional<TarHeader> read_header() {
    const auto header = read_block(offset_);
    if (is_zero_block(header)) return std::nullopt;
    const char* compression = offset_ == 0 ? compression_of(header) : nullptr;
    if (compression) {
      throw DataError(
          fmt::format("[{}] is compressed with {}; shards have to be plain tar files", path_.string(), compression));
    }
    verify_checksum(header);
    return header;
  }

  void verify_checksum(const TarHeader& header) const {
    TarHeader blanked = header;
    std::fill(std::begin(blanked.checksum), std::end(blanked.checksum), ' ');
    const auto* bytes = reinterpret_cast<const unsigned char*>(&blanked);
    int64_t unsigned_sum = 0;
    int64_t signed_sum = 0;  // what some historic writers stored
    for (int64_t i = 0; i < kTarBlock; ++i) {
      unsigned_sum += bytes[i];
      signed_sum += static_cast<signed char>(bytes[i]);
    }
    const int64_t stored = octal(field(header.checksum), "checksum");
    if (stored == unsigned_sum || stored == signed_sum) return;
    fail(offset_, fmt::format("the header's checksum is {}, but its bytes sum to {}", stored, unsigned_sum));
  }

  int64_t octal(std::string_view text, const char* what) const {
    const auto begin = std::min(text.find_first_not_of(' '), text.size());
    auto digits = text.substr(begin);
    digits = digits.substr(0, digits.find(' '));
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, 8);
    const bool complete = end == digits.data() + digits.size() && (error == std::errc() || digits.empty());
    if (!complete) fail(offset_, fmt::format("not a tar header: its {} field is not an octal number", what));
    return static_cast<int64_t>(value);  // at most 12 octal digits
  }

  int64_t size_in(const TarHeader& header) const {
    const auto* bytes = reinterpret_cast<const unsigned char*>(header.size);
    if ((bytes[0] & 0x80) == 0) return octal(field(header.size), "size");
    // GNU's base-256 numbers: big-endian, the first bit is the mark and the second the sign.
    const bool fits = bytes[0] == 0x80 &&
                      std::all_of(bytes + 1, bytes + 4, [](unsigned char byte) { return byte == 0; }) &&
                      (bytes[4] & 0x80) == 0;
    if (!fits) fail(offset_, "the size field is negative or above 2^63");
    int64_t value = 0;
    for (size_t i = 4; i < sizeof header.size; ++i) value = value << 8 | bytes[i];
    return value;
  }

  /// Handles the header at the current offset and moves past its content. Returns: whether it is a regular file.
  bool take(const TarHeader& header, Override& override, TarMember& member) {
    const bool describes_next = header.type == 'L' || header.type == 'K' || header.type == 'x' || header.type == 'X';
    const bool own_size = describes_next || header.type == 'g' || !override.size;
    const int64_t size = carries_no_content(header.type) ? 0 : own_size ? size_in(header) : *override.size;
    const int64_t content = offset_ + kTarBlock;
    check_fits(header, override, content, size);

    if (describes_next) {
      override.pending = true;
      if (header.type == 'L') override.name = read_long_name(content, size);
      if (header.type == 'x' || header.type == 'X') read_pax(content, size, override);
    }
    const bool is_regular = header.type == '0' || header.type == '\0' || header.type == '7';
    if (header.type == 'S' || (is_regular && override.sparse)) {
      fail(offset_, fmt::format("\"{}\" is a sparse file, which is not supported", name_of(header, override)));
    }
    offset_ = content + detail::padded_to_block(size);
    if (describes_next || header.type == 'g') return false;

    auto name = name_of(header, override);
    override = {};
    if (!is_regular || name.ends_with('/')) return false;  // v7 marks a folder by the slash alone
    member = {std::move(name), content, size};
    return true;
  }

  static std::string name_of(const TarHeader& header, const Override& override) {
    return override.name ? *override.name : name_in(header);
  }

  void check_fits(const TarHeader& header, const Override& override, int64_t content, int64_t size) const {
    const int64_t left = file_bytes() - content;
    if (size <= left && detail::padded_to_block(size) <= left) return;
    fail(offset_, fmt::format("truncated: \"{}\" has {} bytes from offset {}, but the file ends at {}",
                              name_of(header, override), size, content, file_bytes()));
  }

  std::string read_content(int64_t content, int64_t size, int64_t max_size, const char* what) const {
    if (size > max_size)
      fail(offset_, fmt::format("the {} has {} bytes, but at most {} are allowed", what, size, max_size));
    std::string text(static_cast<size_t>(size), '\0');
    read(content, {reinterpret_cast<uint8_t*>(text.data()), text.size()});
    return text;
  }

  std::string read_long_name(int64_t content, int64_t size) const {
    auto name = read_content(content, size, kMaxLongName, "long name");
    return name.substr(0, name.find('\0'));
  }

  /// Records are "LENGTH KEY=VALUE\n", where LENGTH counts the whole record.
  void read_pax(int64_t content, int64_t size, Override& override) const {
    const auto text = read_content(content, size, kMaxPaxHeader, "PAX header");
    for (std::string_view rest = text; !rest.empty();) {
      size_t length = 0;
      const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), length);
      const auto digits = static_cast<size_t>(end - rest.data());
      const bool framed = error == std::errc() && length > digits + 1 && length <= rest.size() && rest[digits] == ' ' &&
                          rest[length - 1] == '\n';
      const auto record = framed ? rest.substr(digits + 1, length - digits - 2) : std::string_view();
      const auto equals = record.find('=');
      if (equals == std::string_view::npos) fail(offset_, "the PAX header has a malformed record");
      apply_pax(record.substr(0, equals), record.substr(equals + 1), override);
      rest.remove_prefix(length);
    }
  }

  void apply_pax(std::string_view key, std::string_view value, Override& override) const {
    if (key == "path") override.name = value;
    if (key.starts_with("GNU.sparse.")) override.sparse = true;
    if (key != "size") return;
    int64_t size = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), size);
    if (error != std::errc() || end != value.data() + value.size() || size < 0) {
      fail(offset_, fmt::format("the PAX header's size \"{}\" is not a size", value));
    }
    override.size = size;
  }

  /// At a zero block: the second one, or the file's end, has to follow.
  void finish() {
    const int64_t second = offset_ + kTarBlock;
    if (second < file_bytes() && !is_zero_block(read_block(second))) {
      fail(offset_, "a single zero block is followed by data");
    }
    ended_ = true;
    has_end_blocks_ = second < file_bytes();
  }

  std::filesystem::path path_;
  std::unique_ptr<detail::ReadFile> file_;
  std::vector<uint8_t> window_;
  int64_t window_begin_ = 0;
  int64_t offset_ = 0;
  bool ended_ = false;
  bool has_end_blocks_ = false;
};

TarReader::TarReader(const std::filesystem::path& archive) : impl_(std::make_unique<Impl>(archive)) {}
TarReader::~TarReader() = default;
TarReader::TarReader(TarReader&&) noexcept = default;
TarReader& TarReader::operator=(TarReader&&) noexcept = default;

bool TarReader::next(TarMember& member) {
  return impl_->next(member);
}

bool TarReader::has_end_blocks() const {
  return impl_->has_end_blocks();
}

}  // namespace contrastive::data
