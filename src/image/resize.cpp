#include "contrastive/image/resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include <fmt/format.h>

#include "contrastive/core/error.h"

#include "fixed_point.h"
#include "resample.h"

namespace contrastive::image {
namespace {

using detail::PixelView;
using detail::resample;
using detail::resample_grey16;
using detail::view_of;

Image empty_image(const Image& like, const Box& box) {
  Image image{box.width, box.height, like.mode, {}, like.palette};
  image.pixels.resize(static_cast<size_t>(box.width * box.height * bytes_per_pixel(like.mode)));
  return image;
}

Box whole(const Image& image) {
  return {0, 0, image.width, image.height};
}

/// The input positions of outputs [begin, begin + count), -1 outside the input. PIL adds the step up instead of
/// multiplying, which rounding makes visible; for 16-bit images it multiplies.
std::vector<int64_t> nearest_positions(int64_t in_size, int64_t out_size, int64_t begin, int64_t count,
                                       bool accumulate) {
  const double step = static_cast<double>(in_size) / static_cast<double>(out_size);
  std::vector<int64_t> positions(static_cast<size_t>(count));
  double position = step * 0.5;
  for (int64_t i = 0; i < begin + count; ++i, position += step) {
    if (i < begin) continue;
    const auto index = static_cast<int64_t>(accumulate ? position : (static_cast<double>(i) + 0.5) * step);
    positions[static_cast<size_t>(i - begin)] = index < in_size ? index : -1;
  }
  return positions;
}

Image resize_nearest(const Image& image, int64_t width, int64_t height, const Box& part) {
  const bool accumulate = image.mode != PixelMode::grey16;
  const auto columns = nearest_positions(image.width, width, part.left, part.width, accumulate);
  const auto rows = nearest_positions(image.height, height, part.top, part.height, accumulate);
  const auto step = bytes_per_pixel(image.mode);
  auto out = empty_image(image, part);
  uint8_t* pixel = out.pixels.data();
  for (const auto y : rows) {
    for (const auto x : columns) {
      if (x >= 0 && y >= 0) std::memcpy(pixel, image.row(y) + x * step, static_cast<size_t>(step));
      pixel += step;
    }
  }
  return out;
}

/// Multiplies colours by alpha, which is the last of the channels.
Image premultiplied(const Image& image) {
  const auto channels = bytes_per_pixel(image.mode);
  Image out = image;
  for (size_t i = 0; i < out.pixels.size(); i += static_cast<size_t>(channels)) {
    uint8_t* pixel = out.pixels.data() + i;
    const int alpha = pixel[channels - 1];
    for (int64_t c = 0; c < channels - 1; ++c) pixel[c] = static_cast<uint8_t>(detail::multiply_255(pixel[c], alpha));
  }
  return out;
}

void undo_premultiplication(Image& image) {
  const auto channels = bytes_per_pixel(image.mode);
  for (size_t i = 0; i < image.pixels.size(); i += static_cast<size_t>(channels)) {
    uint8_t* pixel = image.pixels.data() + i;
    const int alpha = pixel[channels - 1];
    if (alpha == 0 || alpha == 255) continue;
    for (int64_t c = 0; c < channels - 1; ++c) pixel[c] = static_cast<uint8_t>(std::min(255 * pixel[c] / alpha, 255));
  }
}

bool has_alpha(PixelMode mode) {
  return mode == PixelMode::rgba || mode == PixelMode::grey_alpha;
}

void check_target(const Image& image, int64_t width, int64_t height) {
  if (width >= 1 && height >= 1 && image.width >= 1 && image.height >= 1) return;
  throw Error(
      fmt::format("[resize] {} x {} to {} x {}: sides must be at least 1", image.width, image.height, width, height));
}

/// The two inputs that an output of one axis lies between, and its share of the way to the second.
struct Neighbours {
  int64_t lower;
  int64_t upper;
  float share;
};

/// Of outputs [begin, begin + count), in TensorFlow's order of operations.
std::vector<Neighbours> neighbours(int64_t in_size, int64_t out_size, int64_t begin, int64_t count) {
  const float scale = static_cast<float>(in_size) / static_cast<float>(out_size);
  std::vector<Neighbours> all;
  for (int64_t i = begin; i < begin + count; ++i) {
    const float scaled = (static_cast<float>(i) + 0.5F) * scale;
    const float place = scaled - 0.5F, below = std::floor(place);
    all.push_back({std::max<int64_t>(static_cast<int64_t>(below), 0),
                   std::min(static_cast<int64_t>(std::ceil(place)), in_size - 1), place - below});
  }
  return all;
}

float between(float first, float second, float share) {
  const float distance = (second - first) * share;
  return first + distance;
}

}  // namespace

Image detail::resize_part_without_antialias(const Image& image, int64_t width, int64_t height, const Box& part) {
  check_target(image, width, height);
  if (image.mode != PixelMode::rgb) throw Error("[resize_without_antialias] the image must be RGB");
  const auto columns = neighbours(image.width, width, part.left, part.width);
  auto out = empty_image(image, part);
  uint8_t* pixel = out.pixels.data();
  for (const auto& row : neighbours(image.height, height, part.top, part.height)) {
    const uint8_t *upper_row = image.row(row.lower), *lower_row = image.row(row.upper);
    for (const auto& column : columns) {
      for (int64_t c = 0; c < 3; ++c) {
        const auto left = column.lower * 3 + c, right = column.upper * 3 + c;
        const float above = between(upper_row[left], upper_row[right], column.share);
        const float below = between(lower_row[left], lower_row[right], column.share);
        *pixel++ = static_cast<uint8_t>(between(above, below, row.share));
      }
    }
  }
  return out;
}

Image resize_without_antialias(const Image& image, int64_t width, int64_t height) {
  return detail::resize_part_without_antialias(image, width, height, {0, 0, width, height});
}

Image detail::resize_part(const Image& image, int64_t width, int64_t height, const Box& part,
                          Interpolation interpolation) {
  check_target(image, width, height);
  if (image.width == width && image.height == height) return crop(image, part);
  const bool by_index = image.mode == PixelMode::palette || image.mode == PixelMode::bilevel;
  if (by_index || interpolation == Interpolation::nearest) return resize_nearest(image, width, height, part);

  auto out = empty_image(image, part);
  if (image.mode == PixelMode::grey16) {
    resample_grey16(view_of(image, whole(image)), width, height, part, interpolation, out.pixels.data());
    return out;
  }
  const auto channels = static_cast<int>(bytes_per_pixel(image.mode));
  if (!has_alpha(image.mode)) {
    resample(view_of(image, whole(image)), channels, width, height, part, interpolation, out.pixels.data());
    return out;
  }
  const auto source = premultiplied(image);
  resample(view_of(source, whole(source)), channels, width, height, part, interpolation, out.pixels.data());
  undo_premultiplication(out);
  return out;
}

Image resize(const Image& image, int64_t width, int64_t height, Interpolation interpolation) {
  return detail::resize_part(image, width, height, {0, 0, width, height}, interpolation);
}

Image crop(const Image& image, const Box& box) {
  if (box.left < 0 || box.top < 0 || box.width < 1 || box.height < 1 || box.left > image.width - box.width ||
      box.top > image.height - box.height) {
    throw Error(fmt::format("[crop] box of {} x {} at column {}, row {} is not inside the {} x {} image", box.width,
                            box.height, box.left, box.top, image.width, image.height));
  }
  auto out = empty_image(image, box);
  const auto step = bytes_per_pixel(image.mode);
  for (int64_t y = 0; y < box.height; ++y) {
    std::memcpy(out.row(y), image.row(box.top + y) + box.left * step, static_cast<size_t>(box.width * step));
  }
  return out;
}

}  // namespace contrastive::image
