// Uncompressed BMP, in the modes of Pillow's BmpImagePlugin: P, or L and 1 where the palette only names grey levels,
// RGB for 16, 24 and 32 bits, RGBA where the file's bit masks name an alpha channel.

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include <fmt/format.h>

#include "contrastive/core/error.h"

#include "byte_reader.h"
#include "formats.h"

namespace contrastive::image::detail {
namespace {

constexpr uint32_t kFileHeaderSize = 14;
constexpr uint32_t kCoreHeaderSize = 12;
constexpr std::array<uint32_t, 6> kInfoHeaderSizes{40, 52, 56, 64, 108, 124};
constexpr uint32_t kUncompressed = 0;
constexpr uint32_t kBitFields = 3;
constexpr uint32_t kMaxColours = 65'536;

/// Which bits of a pixel are red, green, blue and alpha (0: none).
using Masks = std::array<uint32_t, 4>;

constexpr Masks kMasks555{0x7C00, 0x3E0, 0x1F, 0};
constexpr Masks kMasks565{0xF800, 0x7E0, 0x1F, 0};
constexpr Masks kMasksBgrx{0xFF0000, 0xFF00, 0xFF, 0};
constexpr Masks kMasksBgra{0xFF0000, 0xFF00, 0xFF, 0xFF000000};

struct Header {
  int64_t width = 0;
  int64_t height = 0;
  bool top_down = false;
  int bits = 0;
  uint32_t compression = kUncompressed;
  uint32_t num_colours = 0;
  size_t bytes_per_colour = 4;
  size_t pixels_at = 0;
  Masks masks{};

  int64_t row_bytes() const { return (width * bits + 7) / 8; }
  int64_t stride() const { return (width * bits + 31) / 32 * 4; }
};

void read_core_header(ByteReader& reader, Header& header) {
  header.width = reader.u16();
  header.height = reader.u16();
  reader.u16();
  header.bits = reader.u16();
  header.bytes_per_colour = 3;
}

/// Masks lie in the longer headers, or behind the header of 40 bytes.
void read_info_header(ByteReader& reader, uint32_t header_size, Header& header) {
  header.width = reader.u32();
  const auto height = static_cast<int32_t>(reader.u32());
  header.top_down = height < 0;
  header.height = header.top_down ? -int64_t{height} : height;
  reader.u16();
  header.bits = reader.u16();
  header.compression = reader.u32();
  reader.take(12);
  header.num_colours = reader.u32();
  reader.take(4);
  if (header.compression != kBitFields) return;
  const size_t num_masks = header_size >= 56 ? 4 : 3;
  for (size_t i = 0; i < num_masks; ++i) header.masks[i] = reader.u32();
}

/// Throws: DataError naming what Pillow doesn't read either, or is compressed.
void check_layout(ByteReader& reader, Header& header) {
  if (header.compression != kUncompressed && header.compression != kBitFields) {
    throw DataError(fmt::format("image: BMP is compressed (method {}), expected plain pixels", header.compression));
  }
  static constexpr std::array<int, 6> kDepths{1, 4, 8, 16, 24, 32};
  if (std::find(kDepths.begin(), kDepths.end(), header.bits) == kDepths.end()) {
    reader.fail_damaged(fmt::format("pixels of {} bits", header.bits));
  }
  if (header.compression == kUncompressed) {
    header.masks = header.bits == 16 ? kMasks555 : kMasksBgrx;
    return;
  }
  static constexpr std::array<Masks, 7> kLayouts32{{{0xFF0000, 0xFF00, 0xFF, 0},
                                                    {0xFF000000, 0xFF0000, 0xFF00, 0},
                                                    {0xFF000000, 0xFF00, 0xFF, 0},
                                                    {0xFF000000, 0xFF0000, 0xFF00, 0xFF},
                                                    {0xFF, 0xFF00, 0xFF0000, 0xFF000000},
                                                    {0xFF0000, 0xFF00, 0xFF, 0xFF000000},
                                                    {0xFF000000, 0xFF00, 0xFF, 0xFF0000}}};
  if (header.bits < 32) header.masks[3] = 0;
  if (header.bits == 32 && header.masks == Masks{}) header.masks = kMasksBgra;
  const bool known =
      (header.bits == 16 && (header.masks == kMasks555 || header.masks == kMasks565)) ||
      (header.bits == 24 && header.masks == kMasksBgrx) ||
      (header.bits == 32 && std::find(kLayouts32.begin(), kLayouts32.end(), header.masks) != kLayouts32.end());
  if (known) return;
  throw DataError(fmt::format("image: BMP has {} bits with the masks {:X}, which are not supported", header.bits,
                              fmt::join(header.masks, " ")));
}

/// Reads up to the palette.
Header read_header(ByteReader& reader) {
  Header header;
  reader.take(10);
  header.pixels_at = reader.u32();
  const auto header_size = reader.u32();
  if (header_size == kCoreHeaderSize) {
    read_core_header(reader, header);
  } else if (std::find(kInfoHeaderSizes.begin(), kInfoHeaderSizes.end(), header_size) != kInfoHeaderSizes.end()) {
    read_info_header(reader, header_size, header);
  } else {
    reader.fail_damaged(fmt::format("a header of {} bytes", header_size));
  }
  check_layout(reader, header);
  reader.seek(std::max(reader.position(), size_t{kFileHeaderSize} + header_size));
  if (header.num_colours == 0 && header.bits <= 8) header.num_colours = 1U << header.bits;
  return header;
}

/// The palette as RGB.
std::vector<uint8_t> read_palette(ByteReader& reader, const Header& header) {
  if (header.num_colours > kMaxColours) reader.fail_damaged(fmt::format("a palette of {}", header.num_colours));
  const auto entries = reader.take(header.num_colours * header.bytes_per_colour);
  std::vector<uint8_t> palette;
  palette.reserve(size_t{header.num_colours} * 3);
  for (size_t at = 0; at < entries.size(); at += header.bytes_per_colour) {
    palette.insert(palette.end(), {entries[at + 2], entries[at + 1], entries[at]});
  }
  return palette;
}

/// One bit: black and white. More: entry i is the grey level i.
bool names_grey_levels(std::span<const uint8_t> palette, const Header& header) {
  if (header.bits == 4) return false;
  if (header.bits == 1 && header.num_colours != 2) return false;
  for (size_t i = 0; i < palette.size(); ++i) {
    const auto level = header.bits == 1 ? i / 3 * 255 : i / 3;
    if (palette[i] != (level & 0xFF)) return false;
  }
  return true;
}

PixelMode mode_of(const Header& header, std::span<const uint8_t> palette) {
  if (header.bits > 8) return header.masks[3] != 0 ? PixelMode::rgba : PixelMode::rgb;
  if (!names_grey_levels(palette, header)) return PixelMode::palette;
  return header.bits == 1 ? PixelMode::bilevel : PixelMode::grey;
}

/// Indices of 1, 4 or 8 bits, the first in the highest bits.
void unpack_indices(const uint8_t* in, int bits, int64_t width, uint8_t scale, uint8_t* out) {
  const int per_byte = 8 / bits;
  const int mask = (1 << bits) - 1;
  for (int64_t x = 0; x < width; ++x) {
    const auto shift = bits * (per_byte - 1 - static_cast<int>(x % per_byte));
    out[x] = static_cast<uint8_t>((in[x / per_byte] >> shift & mask) * scale);
  }
}

/// A channel of a pixel, stretched to [0, 255].
uint8_t channel(uint32_t pixel, uint32_t mask) {
  const auto shift = __builtin_ctz(mask);
  return static_cast<uint8_t>(((pixel & mask) >> shift) * 255U / (mask >> shift));
}

void unpack_colours(const uint8_t* in, const Header& header, int64_t channels, uint8_t* out) {
  const int bytes = header.bits / 8;
  for (int64_t x = 0; x < header.width; ++x, in += bytes) {
    uint32_t pixel = 0;
    for (int i = 0; i < bytes; ++i) pixel |= uint32_t{in[i]} << (8 * i);
    for (int64_t c = 0; c < channels; ++c) *out++ = channel(pixel, header.masks[static_cast<size_t>(c)]);
  }
}

/// Where the pixels begin; some writers count the palette out of the offset.
size_t find_pixels(const ByteReader& reader, const Header& header, size_t palette_at) {
  if (header.pixels_at == 0) return reader.position();
  return header.bits <= 8 && header.pixels_at == palette_at ? reader.position() : header.pixels_at;
}

}  // namespace

ImageInfo read_bmp_info(std::span<const uint8_t> bytes) {
  ByteReader reader(bytes, "BMP");
  const auto header = read_header(reader);
  return {header.width, header.height};
}

Image decode_bmp(std::span<const uint8_t> bytes, const DecodeLimits& limits) {
  ByteReader reader(bytes, "BMP");
  const auto header = read_header(reader);
  check_size("BMP", header.width, header.height, limits);
  const auto palette_at = reader.position();
  const auto palette = header.bits <= 8 ? read_palette(reader, header) : std::vector<uint8_t>{};
  reader.seek(find_pixels(reader, header, palette_at));
  const auto stored = reader.take(static_cast<size_t>(header.stride() * (header.height - 1) + header.row_bytes()));

  Image image{header.width, header.height, mode_of(header, palette), {}, {}};
  if (image.mode == PixelMode::palette) image.palette = palette;
  const auto channels = bytes_per_pixel(image.mode);
  image.pixels.resize(static_cast<size_t>(image.width * image.height * channels));
  for (int64_t y = 0; y < image.height; ++y) {
    const auto* in = stored.data() + (header.top_down ? y : image.height - 1 - y) * header.stride();
    if (header.bits <= 8) {
      unpack_indices(in, header.bits, image.width, image.mode == PixelMode::bilevel ? 255 : 1, image.row(y));
    } else {
      unpack_colours(in, header, channels, image.row(y));
    }
  }
  return image;
}

}  // namespace contrastive::image::detail
