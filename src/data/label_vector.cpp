#include "data/label_vector.h"

#include <charconv>
#include <optional>

#include <fmt/format.h>

#include "contrastive/core/error.h"

namespace contrastive::data::detail {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";

[[noreturn]] void fail(const std::string& what) {
  throw DataError(fmt::format("the .npy member {}", what));
}

/// A whole number of `bytes` bytes, the least one first unless it is big-endian.
uint64_t read_bits(std::string_view bytes, bool big_endian) {
  uint64_t bits = 0;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const auto place = big_endian ? bytes.size() - 1 - i : i;
    bits |= uint64_t{static_cast<uint8_t>(bytes[i])} << (8 * place);
  }
  return bits;
}

/// What follows `'key':` in the header's dict.
std::optional<std::string_view> value_of(std::string_view header, std::string_view key) {
  const auto at = header.find(fmt::format("'{}'", key));
  if (at == std::string_view::npos) return std::nullopt;
  auto rest = header.substr(at + key.size() + 2);
  const auto begin = rest.find_first_not_of(" :");
  return begin == std::string_view::npos ? std::nullopt : std::optional(rest.substr(begin));
}

struct Element {
  size_t bytes = 0;
  bool big_endian = false;
  uint64_t one = 1;  ///< the bits of 1
};

/// "'<i8', ..." as the layout of an element.
Element parse_descriptor(std::string_view value) {
  const auto text = value.substr(0, 1) == "'" ? value.substr(1, value.find('\'', 1) - 1) : value.substr(0, 20);
  const auto kind = text.size() == 3 ? text.substr(1) : std::string_view();
  Element element;
  element.big_endian = text.starts_with('>');
  if (kind == "b1" || kind == "i1" || kind == "u1") element.bytes = 1;
  if (kind == "i2" || kind == "u2" || kind == "f2") element.bytes = 2;
  if (kind == "i4" || kind == "u4" || kind == "f4") element.bytes = 4;
  if (kind == "i8" || kind == "u8" || kind == "f8") element.bytes = 8;
  if (element.bytes == 0) fail(fmt::format("should hold bools, integers or floats, but its dtype is {}", text));
  if (kind == "f2") element.one = 0x3C00;
  if (kind == "f4") element.one = 0x3F800000;
  if (kind == "f8") element.one = 0x3FF0000000000000;
  return element;
}

/// "(20,), ..." as 20.
uint64_t parse_length(std::string_view value) {
  uint64_t length = 0;
  const auto text = value.substr(0, value.find(')') + 1);
  const auto digits = text.substr(text.empty() ? 0 : 1);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), length);
  const auto rest = digits.substr(static_cast<size_t>(end - digits.data()));
  if (!text.starts_with('(') || error != std::errc() || (rest != ",)" && rest != ", )")) {
    fail(fmt::format("should be a vector, but its shape is {}", text.substr(0, 40)));
  }
  return length;
}

}  // namespace

std::vector<int64_t> parse_label_vector(std::string_view content, int64_t num_labels) {
  if (!content.starts_with(kMagic) || content.size() < 12) fail("is no NumPy array");
  const int version = static_cast<uint8_t>(content[6]);
  if (version < 1 || version > 3) fail(fmt::format("has .npy version {}, versions 1 to 3 are read", version));
  const size_t count_bytes = version == 1 ? 2 : 4;
  const auto header_bytes = read_bits(content.substr(8, count_bytes), false);
  const auto begin = 8 + count_bytes;
  if (header_bytes > content.size() - begin) fail("is cut off in its header");
  const auto header = content.substr(begin, header_bytes);
  const auto data = content.substr(begin + header_bytes);

  const auto descriptor = value_of(header, "descr");
  const auto shape = value_of(header, "shape");
  if (!descriptor || !shape) fail("has a header without dtype or shape");
  const auto element = parse_descriptor(*descriptor);
  const auto length = parse_length(*shape);
  if (num_labels > 0 && length != static_cast<uint64_t>(num_labels)) {
    fail(fmt::format("has {} values, but there are {} class names: expected one each", length, num_labels));
  }
  if (data.size() % element.bytes != 0 || data.size() / element.bytes != length) {
    fail(fmt::format("has {} bytes of values, but {} values of {} bytes are announced", data.size(), length,
                     element.bytes));
  }
  std::vector<int64_t> labels;
  for (size_t i = 0; i < length; ++i) {
    const auto bits = read_bits(data.substr(i * element.bytes, element.bytes), element.big_endian);
    if (bits != 0 && bits != element.one) fail(fmt::format("should hold 0 and 1 only, but value {} is neither", i));
    if (bits != 0) labels.push_back(static_cast<int64_t>(i));
  }
  return labels;
}

}  // namespace contrastive::data::detail
