#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "contrastive/image/image.h"
#include "contrastive/image/resize.h"

namespace contrastive::image::detail {

enum class Format { jpeg, png, webp, gif, bmp };

/// Recognises a format by its first bytes. Throws: DataError, naming what was found, if it is none of ours.
Format recognise_format(std::span<const uint8_t> bytes);

/// Throws: DataError if a header's claim is above the limits.
void check_size(std::string_view format, int64_t width, int64_t height, const DecodeLimits& limits);

/// A JPEG whose header is read and whose pixels are not yet; `bytes` must outlive it.
class JpegReader {
 public:
  explicit JpegReader(std::span<const uint8_t> bytes);
  ~JpegReader();
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;

  ImageInfo info() const;

  /// Whether read_rgb can be used: CMYK needs PIL's conversion.
  bool converts_to_rgb() const;

  /// The whole image in the file's own mode. Call this or read_rgb, once.
  Image read(const DecodeLimits& limits);

  /// Makes read_rgb decode at 1 / `denominator` (1, 2, 4 or 8) of the size, sides rounded up, by shorter transforms of
  /// the blocks: what PIL's draft does. Boxes are then those of the small image.
  void scale_down(int denominator);

  /// What read_rgb has to decode for `box`: the same rows and a few columns more, so that upsampling sees its
  /// neighbours.
  Box region_around(const Box& box) const;

  /// Decodes a region from region_around as rows of region.width * 3 bytes; the pixels of its box equal those of a full
  /// decode. A file without an end marker is read to its end, so that truncation shows whatever the box.
  /// Call this or read, once.
  void read_rgb(const Box& region, uint8_t* out);

 private:
  struct State;
  static std::unique_ptr<State>& spare_state();
  static std::unique_ptr<State> take_state();

  std::unique_ptr<State> state_;
};

ImageInfo read_png_info(std::span<const uint8_t> bytes);
Image decode_png(std::span<const uint8_t> bytes, const DecodeLimits& limits);

ImageInfo read_webp_info(std::span<const uint8_t> bytes);
Image decode_webp(std::span<const uint8_t> bytes, const DecodeLimits& limits);

ImageInfo read_gif_info(std::span<const uint8_t> bytes);
Image decode_gif(std::span<const uint8_t> bytes, const DecodeLimits& limits);

ImageInfo read_bmp_info(std::span<const uint8_t> bytes);
Image decode_bmp(std::span<const uint8_t> bytes, const DecodeLimits& limits);

}  // namespace contrastive::image::detail
