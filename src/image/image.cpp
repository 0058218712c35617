#include "contrastive/image/image.h"

#include <algorithm>
#include <cstring>

#include "contrastive/core/error.h"

#include "fixed_point.h"

namespace contrastive::image {
namespace {

using PixelConverter = void (*)(const Image& image, const uint8_t* in, uint8_t* out);

void grey_to_rgb(const Image&, const uint8_t* in, uint8_t* out) {
  std::memset(out, in[0], 3);
}

void bilevel_to_rgb(const Image&, const uint8_t* in, uint8_t* out) {
  std::memset(out, in[0] != 0 ? 255 : 0, 3);
}

void grey16_to_rgb(const Image&, const uint8_t* in, uint8_t* out) {
  uint16_t value = 0;
  std::memcpy(&value, in, sizeof(value));
  std::memset(out, std::min<int>(value, 255), 3);
}

void palette_to_rgb(const Image& image, const uint8_t* in, uint8_t* out) {
  const size_t entry = size_t{in[0]} * 3;
  if (entry + 3 > image.palette.size()) {
    std::memset(out, 0, 3);
  } else {
    std::memcpy(out, image.palette.data() + entry, 3);
  }
}

void first_three_to_rgb(const Image&, const uint8_t* in, uint8_t* out) {
  std::memcpy(out, in, 3);
}

void cmyk_to_rgb(const Image&, const uint8_t* in, uint8_t* out) {
  const int not_black = 255 - in[3];
  for (int c = 0; c < 3; ++c) {
    out[c] = static_cast<uint8_t>(std::clamp(not_black - detail::multiply_255(in[c], not_black), 0, 255));
  }
}

PixelConverter converter_from(PixelMode mode) {
  switch (mode) {
    case PixelMode::bilevel:
      return bilevel_to_rgb;
    case PixelMode::grey:
    case PixelMode::grey_alpha:
      return grey_to_rgb;
    case PixelMode::grey16:
      return grey16_to_rgb;
    case PixelMode::palette:
      return palette_to_rgb;
    case PixelMode::rgb:
    case PixelMode::rgba:
      return first_three_to_rgb;
    case PixelMode::cmyk:
      return cmyk_to_rgb;
  }
  CONTRASTIVE_INTERNAL_ASSERT(false);
  return nullptr;
}

}  // namespace

int64_t bytes_per_pixel(PixelMode mode) {
  switch (mode) {
    case PixelMode::bilevel:
    case PixelMode::grey:
    case PixelMode::palette:
      return 1;
    case PixelMode::grey16:
    case PixelMode::grey_alpha:
      return 2;
    case PixelMode::rgb:
      return 3;
    case PixelMode::rgba:
    case PixelMode::cmyk:
      return 4;
  }
  CONTRASTIVE_INTERNAL_ASSERT(false);
  return 0;
}

const uint8_t* Image::row(int64_t y) const {
  return pixels.data() + y * width * bytes_per_pixel(mode);
}
uint8_t* Image::row(int64_t y) {
  return pixels.data() + y * width * bytes_per_pixel(mode);
}

Image to_rgb(const Image& image) {
  if (image.mode == PixelMode::rgb) return image;
  Image rgb{image.width, image.height, PixelMode::rgb, {}, {}};
  rgb.pixels.resize(static_cast<size_t>(image.width * image.height * 3));
  const auto convert = converter_from(image.mode);
  const auto step = bytes_per_pixel(image.mode);
  const uint8_t* in = image.pixels.data();
  uint8_t* out = rgb.pixels.data();
  for (int64_t i = 0; i < image.width * image.height; ++i, in += step, out += 3) convert(image, in, out);
  return rgb;
}

}  // namespace contrastive::image
