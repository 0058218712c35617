#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "contrastive/core/export.h"

namespace contrastive::image {

/// What the numbers of a pixel mean, in PIL's terms.
enum class PixelMode {
  bilevel,     ///< "1": one byte, 0 or 255
  grey,        ///< "L"
  grey16,      ///< "I;16": two bytes, host order
  grey_alpha,  ///< "LA"
  palette,     ///< "P": one byte, an index into `palette`
  rgb,         ///< "RGB"
  rgba,        ///< "RGBA"
  cmyk,        ///< "CMYK"
};

/// An image in memory: rows from top to bottom, channels interleaved, no padding.
struct CONTRASTIVE_API Image {
  int64_t width = 0;
  int64_t height = 0;
  PixelMode mode = PixelMode::rgb;
  std::vector<uint8_t> pixels;   ///< [height, width, bytes_per_pixel(mode)]
  std::vector<uint8_t> palette;  ///< 3 bytes an entry, `palette` mode only

  const uint8_t* row(int64_t y) const;
  uint8_t* row(int64_t y);
};

CONTRASTIVE_API int64_t bytes_per_pixel(PixelMode mode);

/// Limits that hold before memory is taken: a header is only a claim.
struct DecodeLimits {
  int64_t max_pixels = 100'000'000;  ///< width x height
};

/// What a file's header claims.
struct ImageInfo {
  int64_t width = 0;
  int64_t height = 0;
};

/// Reads the header of a JPEG, PNG, WebP, GIF or BMP. Throws: DataError if it is none of them, or damaged.
CONTRASTIVE_API ImageInfo read_image_info(std::span<const uint8_t> bytes);

/// Decodes a JPEG, PNG, WebP, GIF or BMP in the file's own mode, as PIL's Image.open does: 16-bit RGB keeps the high
/// bytes, 16-bit grey with alpha becomes rgba, tRNS and gamma don't count, of a GIF the first frame is read. EXIF
/// orientation is ignored. Thread-safe. libjpeg's warnings (a damaged code in the data) are tolerated; animated WebP
/// and compressed BMP are errors. Throws: DataError if the format is unknown, the data damaged or truncated, or the
/// size above the limits.
CONTRASTIVE_API Image decode_image(std::span<const uint8_t> bytes, const DecodeLimits& limits = {});

/// Converts to RGB as PIL's Image.convert("RGB"): alpha is dropped, 16-bit grey is clipped at 255, palette entries that
/// the file doesn't define are black.
CONTRASTIVE_API Image to_rgb(const Image& image);

/// Writes an RGB image as PNG or as JPEG (4:2:0, quality in [1, 100]). Throws: Error if the image isn't RGB.
CONTRASTIVE_API std::vector<uint8_t> encode_png(const Image& rgb);
CONTRASTIVE_API std::vector<uint8_t> encode_jpeg(const Image& rgb, int quality);

}  // namespace contrastive::image
