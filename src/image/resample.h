#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "contrastive/image/resize.h"

namespace contrastive::image::detail {

/// Uninitialised bytes that stay with their owner between calls; large ones are given back.
class ScratchBuffer {
 public:
  /// At least `size` bytes; what an earlier call returned is no longer valid.
  uint8_t* bytes(size_t size);

 private:
  std::unique_ptr<uint8_t[]> data_;
  size_t capacity_ = 0;
};

/// Rows of interleaved bytes in someone else's memory.
struct PixelView {
  const uint8_t* pixels = nullptr;
  int64_t stride = 0;  ///< bytes from row to row
  int64_t width = 0;
  int64_t height = 0;
  const uint8_t* readable_end = nullptr;  ///< end of the memory behind `pixels`: reads may pass a row's end, not this
};

/// The pixels of `box` in `image`; valid as long as the image.
PixelView view_of(const Image& image, const Box& box);

/// Where a resampling takes its image from, in pixels of the source: fractions are allowed.
struct SourceBox {
  double left = 0;
  double top = 0;
  double width = 0;
  double height = 0;
};

/// Resamples `box` of 1 to 4 channels of uint8 to width x height: PIL's resize with a box, bit for bit, of the source
/// alone. interpolation and `out` as below.
void resample_box(const PixelView& source, int channels, const SourceBox& box, int64_t width, int64_t height,
                  Interpolation interpolation, uint8_t* out);

/// Computes `part` of the width x height resampling of 1 to 4 channels of uint8: PIL's ImagingResample, bit for bit.
/// interpolation: bilinear or bicubic. `out`: part.height rows of part.width * channels bytes.
void resample(const PixelView& source, int channels, int64_t width, int64_t height, const Box& part,
              Interpolation interpolation, uint8_t* out);

/// The same for 16-bit grey in host order, which PIL computes in double.
void resample_grey16(const PixelView& source, int64_t width, int64_t height, const Box& part,
                     Interpolation interpolation, uint8_t* out);

/// crop(resize(image, width, height, interpolation), part) without computing the rest.
Image resize_part(const Image& image, int64_t width, int64_t height, const Box& part, Interpolation interpolation);

/// The same of resize_without_antialias.
Image resize_part_without_antialias(const Image& image, int64_t width, int64_t height, const Box& part);

}  // namespace contrastive::image::detail
