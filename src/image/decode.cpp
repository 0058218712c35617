#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/image/image.h"

#include "formats.h"

namespace contrastive::image {
namespace detail {
namespace {

/// No side is longer: keeps the tables of the resampler small, whatever max_pixels allows.
constexpr int64_t kMaxSide = 1'000'000;

bool starts_with(std::span<const uint8_t> bytes, std::string_view magic, size_t offset = 0) {
  return bytes.size() >= offset + magic.size() && std::memcmp(bytes.data() + offset, magic.data(), magic.size()) == 0;
}

struct KnownFormat {
  const char* name;
  std::string_view magic;
  size_t offset;
};

constexpr std::array kOtherFormats{
    KnownFormat{"a TIFF", {"II*\0", 4}, 0},  KnownFormat{"a TIFF", {"MM\0*", 4}, 0},
    KnownFormat{"an AVIF", "ftypavif", 4},   KnownFormat{"a HEIC", "ftyphei", 4},
    KnownFormat{"a JPEG XL", "\xFF\x0A", 0}, KnownFormat{"a JPEG 2000", {"\0\0\0\x0CjP", 6}, 0},
    KnownFormat{"an SVG", "<svg", 0},        KnownFormat{"an HTML or XML text", "<", 0},
};

std::string describe_start(std::span<const uint8_t> bytes) {
  if (bytes.empty()) return "there are no bytes";
  for (const auto& format : kOtherFormats) {
    if (starts_with(bytes, format.magic, format.offset)) {
      return fmt::format("this is {} ({} bytes)", format.name, bytes.size());
    }
  }
  const auto start = bytes.first(std::min<size_t>(bytes.size(), 8));
  return fmt::format("this starts with {:02X} ({} bytes)", fmt::join(start, " "), bytes.size());
}

}  // namespace

Format recognise_format(std::span<const uint8_t> bytes) {
  if (starts_with(bytes, "\xFF\xD8\xFF")) return Format::jpeg;
  if (starts_with(bytes, "\x89PNG\r\n\x1A\n")) return Format::png;
  if (starts_with(bytes, "RIFF") && starts_with(bytes, "WEBP", 8)) return Format::webp;
  if (starts_with(bytes, "GIF87a") || starts_with(bytes, "GIF89a")) return Format::gif;
  if (starts_with(bytes, "BM")) return Format::bmp;
  throw DataError(fmt::format("image: expected a JPEG, PNG, WebP, GIF or BMP, but {}", describe_start(bytes)));
}

void check_size(std::string_view format, int64_t width, int64_t height, const DecodeLimits& limits) {
  if (width < 1 || height < 1) {
    throw DataError(fmt::format("image: {} claims {} x {} pixels", format, width, height));
  }
  if (width > limits.max_pixels / height) {
    throw DataError(fmt::format("image: {} claims {} x {} pixels, the limit is {} in all (max_pixels)", format, width,
                                height, limits.max_pixels));
  }
  if (std::max(width, height) > kMaxSide) {
    throw DataError(
        fmt::format("image: {} claims {} x {} pixels, the limit is {} a side", format, width, height, kMaxSide));
  }
}

}  // namespace detail

ImageInfo read_image_info(std::span<const uint8_t> bytes) {
  switch (detail::recognise_format(bytes)) {
    case detail::Format::jpeg:
      return detail::JpegReader(bytes).info();
    case detail::Format::png:
      return detail::read_png_info(bytes);
    case detail::Format::webp:
      return detail::read_webp_info(bytes);
    case detail::Format::gif:
      return detail::read_gif_info(bytes);
    case detail::Format::bmp:
      return detail::read_bmp_info(bytes);
  }
  CONTRASTIVE_INTERNAL_ASSERT(false);
  return {};
}

Image decode_image(std::span<const uint8_t> bytes, const DecodeLimits& limits) {
  switch (detail::recognise_format(bytes)) {
    case detail::Format::jpeg:
      return detail::JpegReader(bytes).read(limits);
    case detail::Format::png:
      return detail::decode_png(bytes, limits);
    case detail::Format::webp:
      return detail::decode_webp(bytes, limits);
    case detail::Format::gif:
      return detail::decode_gif(bytes, limits);
    case detail::Format::bmp:
      return detail::decode_bmp(bytes, limits);
  }
  CONTRASTIVE_INTERNAL_ASSERT(false);
  return {};
}

}  // namespace contrastive::image
