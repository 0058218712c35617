#include "contrastive/core/npz_file.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <zlib.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"

#include "core/shown.h"
#include "core/zip_archive.h"

namespace contrastive {
namespace detail {
namespace {

constexpr std::string_view kSuffix = ".npy";
constexpr std::string_view kMagic = "\x93NUMPY";
/// NumPy's own bound on a header that is not trusted.
constexpr uint64_t kMaxHeaderBytes = 10'000;
/// Magic, version and the longer of the two length fields.
constexpr uint64_t kMaxPreambleBytes = 12;
constexpr size_t kMaxDimensions = 64;

struct NpyDtype {
  std::string_view kind;  ///< the descriptor without its byte order
  at::ScalarType dtype;
};

constexpr std::array<NpyDtype, 15> kDtypes{{{"f4", at::kFloat},
                                            {"f2", at::kHalf},
                                            {"f8", at::kDouble},
                                            {"V2", at::kBFloat16},
                                            {"i8", at::kLong},
                                            {"i4", at::kInt},
                                            {"i2", at::kShort},
                                            {"i1", at::kChar},
                                            {"u1", at::kByte},
                                            {"u2", at::kUInt16},
                                            {"u4", at::kUInt32},
                                            {"u8", at::kUInt64},
                                            {"b1", at::kBool},
                                            {"c8", at::kComplexFloat},
                                            {"c16", at::kComplexDouble}}};

/// What a header says.
struct NpyHeader {
  std::string descriptor;
  bool is_fortran = false;
  std::vector<int64_t> shape;
};

/// Reads the Python dict of a header, as {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }. Nothing but what
/// such a dict may hold is understood; `nullopt` for anything else.
class HeaderParser {
 public:
  explicit HeaderParser(std::string_view text) : rest_(text) {}

  std::optional<NpyHeader> run() {
    NpyHeader header;
    if (!take('{')) return std::nullopt;
    bool has_descriptor = false, has_order = false, has_shape = false;
    while (!take('}')) {
      const auto key = string();
      if (!key || !take(':')) return std::nullopt;
      const bool is_read = (*key == "descr" && !std::exchange(has_descriptor, true) && descriptor(header)) ||
                           (*key == "fortran_order" && !std::exchange(has_order, true) && order(header)) ||
                           (*key == "shape" && !std::exchange(has_shape, true) && shape(header));
      if (!is_read) return std::nullopt;
      if (!take(',') && !peek('}')) return std::nullopt;
    }
    skip_space();
    const bool is_whole = has_descriptor && has_order && has_shape && rest_.empty();
    return is_whole ? std::optional(header) : std::nullopt;
  }

 private:
  void skip_space() { rest_.remove_prefix(std::min(rest_.find_first_not_of(" \n\t\r"), rest_.size())); }

  bool peek(char c) {
    skip_space();
    return rest_.starts_with(c);
  }

  bool take(char c) {
    const bool found = peek(c);
    if (found) rest_.remove_prefix(1);
    return found;
  }

  bool take(std::string_view word) {
    skip_space();
    const bool found = rest_.starts_with(word);
    if (found) rest_.remove_prefix(word.size());
    return found;
  }

  std::optional<std::string> string() {
    skip_space();
    if (rest_.empty() || (rest_[0] != '\'' && rest_[0] != '"')) return std::nullopt;
    const auto end = rest_.find(rest_[0], 1);
    if (end == std::string_view::npos) return std::nullopt;
    std::string text(rest_.substr(1, end - 1));
    rest_.remove_prefix(end + 1);
    return text;
  }

  /// A list describes records; its text stands for it in the message.
  bool descriptor(NpyHeader& header) {
    if (peek('[')) {
      const auto end = std::min(rest_.find(']'), rest_.size() - 1);
      header.descriptor = rest_.substr(0, end + 1);
      rest_.remove_prefix(end + 1);
      return true;
    }
    const auto text = string();
    header.descriptor = text.value_or("");
    return text.has_value();
  }

  bool order(NpyHeader& header) {
    header.is_fortran = take("True");
    return header.is_fortran || take("False");
  }

  bool shape(NpyHeader& header) {
    if (!take('(')) return false;
    while (!take(')')) {
      skip_space();
      int64_t size = -1;
      const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), size);
      if (error != std::errc() || size < 0 || header.shape.size() == kMaxDimensions) return false;
      header.shape.push_back(size);
      rest_.remove_prefix(static_cast<size_t>(end - rest_.data()));
      if (rest_.starts_with('L')) rest_.remove_prefix(1);  // Python 2's long
      if (!take(',') && !peek(')')) return false;
    }
    return true;
  }

  std::string_view rest_;
};

/// As much of the inflated data as there is, `most` bytes at most. What is damaged further on shows when all is read.
std::string inflated_begin(std::span<const uint8_t> source, uint64_t most) {
  z_stream stream{};
  if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) return {};
  std::string target(most, '\0');
  stream.next_in = const_cast<uint8_t*>(source.data());
  stream.avail_in = static_cast<uInt>(std::min<uint64_t>(source.size(), 1 << 30));
  stream.next_out = reinterpret_cast<Bytef*>(target.data());
  stream.avail_out = static_cast<uInt>(most);
  while (stream.avail_out > 0 && inflate(&stream, Z_NO_FLUSH) == Z_OK) {
  }
  target.resize(most - stream.avail_out);
  inflateEnd(&stream);
  return target;
}

/// A member with what its header says.
struct NpyArray {
  ZipMember member;
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  bool is_fortran;
  uint64_t data_begin;  ///< within the member
};

}  // namespace

/// The mapped file and its directory.
class NpzArchive {
 public:
  explicit NpzArchive(const std::filesystem::path& file)
      : where_(file.string()), mapping_(map(file)), zip_(where_, mapping_.bytes()) {}

  std::vector<NpyArray> arrays() const {
    if (zip_.members().empty()) fail("holds no arrays");
    std::vector<NpyArray> result;
    for (const auto& member : zip_.members()) result.push_back(array(member));
    return result;
  }

  at::Tensor load(const NpyArray& array) const {
    auto bytes = at::empty({static_cast<int64_t>(array.member.bytes)}, at::kByte);
    const std::span<uint8_t> target(bytes.data_ptr<uint8_t>(), array.member.bytes);
    zip_.read(array.member, target);
    check_sum(array, target);
    mapping_.release(array.member.begin, array.member.stored_bytes);
    bytes = bytes.slice(0, static_cast<int64_t>(array.data_begin));
    if (array.data_begin % c10::elementSize(array.dtype) != 0) bytes = bytes.clone();
    // A C++ bool must be 0 or 1, which bytes of a file need not be.
    const auto flat = array.dtype == at::kBool ? bytes.ne(0) : bytes.view(array.dtype);
    if (!array.is_fortran) return flat.view(array.shape);
    return flat.view(std::vector<int64_t>(array.shape.rbegin(), array.shape.rend()))
        .permute(reversed(array))
        .contiguous();
  }

 private:
  static MappedFile map(const std::filesystem::path& file) {
    try {
      return MappedFile(file);
    } catch (const Error& error) {
      throw CheckpointError(error.what());
    }
  }

  [[noreturn]] void fail(const std::string& message) const {
    throw CheckpointError(fmt::format("[{}] {}", where_, message));
  }

  static std::vector<int64_t> reversed(const NpyArray& array) {
    std::vector<int64_t> order;
    for (auto i = static_cast<int64_t>(array.shape.size()); i-- > 0;) order.push_back(i);
    return order;
  }

  NpyArray array(const ZipMember& member) const {
    if (!member.name.ends_with(kSuffix) || member.name.size() == kSuffix.size()) {
      fail(fmt::format("is no .npz file: its member '{}' is not named as an array, NAME.npy", shown(member.name)));
    }
    NpyArray result{.member = member,
                    .name = std::string(member.name.substr(0, member.name.size() - kSuffix.size())),
                    .dtype = at::kFloat,
                    .shape = {},
                    .is_fortran = false,
                    .data_begin = 0};
    const auto begin = begin_of(member);
    const auto header = header_of(result, begin);
    result.dtype = dtype_of(result, header.descriptor);
    result.shape = header.shape;
    result.is_fortran = header.is_fortran;
    check_size(result);
    return result;
  }

  std::string begin_of(const ZipMember& member) const {
    const auto most = std::min(member.bytes, kMaxPreambleBytes + kMaxHeaderBytes);
    const auto stored = zip_.stored(member);
    if (member.is_deflated) return inflated_begin(stored, most);
    return {reinterpret_cast<const char*>(stored.data()), most};
  }

  NpyHeader header_of(NpyArray& array, std::string_view begin) const {
    const auto damaged = [&](std::string_view why) {
      fail(fmt::format("array '{}' {}; the file is damaged or holds something else", shown(array.name), why));
    };
    if (!begin.starts_with(kMagic) || begin.size() < kMaxPreambleBytes) damaged("does not begin as a .npy file");
    const auto byte = [&](size_t position) { return static_cast<uint64_t>(static_cast<uint8_t>(begin[position])); };
    const auto version = byte(6);
    if (version < 1 || version > 3) damaged(fmt::format("has .npy version {}, versions 1 to 3 are read", version));
    const size_t length_bytes = version == 1 ? 2 : 4;
    uint64_t length = 0;
    for (size_t i = 0; i < length_bytes; ++i) length |= byte(8 + i) << (8 * i);
    array.data_begin = 8 + length_bytes + length;
    if (length > kMaxHeaderBytes || array.data_begin > begin.size()) {
      damaged(fmt::format("claims a header of {} bytes in {} (at most {} are accepted)", length, array.member.bytes,
                          kMaxHeaderBytes));
    }
    const auto text = begin.substr(8 + length_bytes, length);
    const auto header = HeaderParser(text).run();
    if (!header) damaged(fmt::format("has a header that is not read: {}", shown(text)));
    return *header;
  }

  at::ScalarType dtype_of(const NpyArray& array, std::string_view descriptor) const {
    const auto order = descriptor.empty() ? ' ' : descriptor[0];
    const auto kind = descriptor.substr(descriptor.empty() ? 0 : 1);
    if (kind.starts_with('O')) {
      fail(fmt::format("array '{}' holds Python objects (a pickle), which are never read", shown(array.name)));
    }
    for (const auto& known : kDtypes) {
      if (known.kind == kind && (order == '<' || order == '|')) return known.dtype;
    }
    fail(fmt::format("array '{}' has dtype {}, which is not supported: little-endian numbers, bool and |V2 are",
                     shown(array.name), shown(descriptor)));
  }

  void check_size(const NpyArray& array) const {
    auto bytes = static_cast<int64_t>(c10::elementSize(array.dtype));
    bool overflow = false, is_empty = false;
    for (const auto size : array.shape) {
      is_empty |= size == 0;
      // Products of the sizes beside a zero must not overflow either.
      overflow |= __builtin_mul_overflow(bytes, std::max<int64_t>(size, 1), &bytes);
    }
    if (is_empty) bytes = 0;
    const auto held = array.member.bytes - array.data_begin;
    if (overflow || static_cast<uint64_t>(bytes) != held) {
      fail(fmt::format("array '{}' has shape [{}] of {}-byte elements, but {} bytes of data; the file is damaged",
                       shown(array.name), fmt::join(array.shape, ", "), c10::elementSize(array.dtype), held));
    }
  }

  void check_sum(const NpyArray& array, std::span<const uint8_t> bytes) const {
    if (static_cast<uint32_t>(::crc32_z(0, bytes.data(), bytes.size())) == array.member.crc32) return;
    fail(
        fmt::format("array '{}' has not the checksum that was stored with it; the file is damaged", shown(array.name)));
  }

  std::string where_;
  MappedFile mapping_;
  ZipArchive zip_;
};

}  // namespace detail

std::vector<LazyTensor> open_npz_file(const std::filesystem::path& file) {
  const auto archive = std::make_shared<const detail::NpzArchive>(file);
  std::vector<LazyTensor> result;
  for (auto& array : archive->arrays()) {
    auto name = array.name;
    auto shape = array.shape;
    const auto dtype = array.dtype;
    result.push_back({std::move(name), dtype, std::move(shape),
                      [archive, array = std::move(array)] { return archive->load(array); }});
  }
  return result;
}

}  // namespace contrastive
