#include "contrastive/image/transform.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include <fmt/format.h>

#include "contrastive/core/error.h"

#include "formats.h"
#include "resample.h"

namespace contrastive::image {
namespace {

constexpr int kTries = 10;
constexpr double kAspectMin = 3.0 / 4.0;
constexpr double kAspectMax = 4.0 / 3.0;

/// Python's round: halves go to the even neighbour (the default rounding mode does).
int64_t round_half_even(double value) {
  return static_cast<int64_t>(std::nearbyint(value));
}

/// The centred size x size part of a width x height image that is at least that large.
Box centre(int64_t width, int64_t height, int64_t size) {
  const auto offset = [size](int64_t side) { return round_half_even(static_cast<double>(side - size) / 2.0); };
  return {offset(width), offset(height), size, size};
}

/// The side that is resized to before the centre crop.
int64_t resized_side(const PreprocessSpec& spec) {
  return static_cast<int64_t>(std::floor(static_cast<double>(spec.size) / spec.crop_fraction));
}

Image shortest_to_square(const Image& image, const PreprocessSpec& spec) {
  const auto shorter = std::min(image.width, image.height), target = resized_side(spec);
  const auto scaled = [&](int64_t side) {
    return side == shorter ? target
                           : static_cast<int64_t>(static_cast<double>(target * side) / static_cast<double>(shorter));
  };
  const auto width = scaled(image.width);
  const auto height = scaled(image.height);
  return detail::resize_part(image, width, height, centre(width, height, spec.size), spec.interpolation);
}

/// Fills with `value` in every channel, alpha and palette index included.
Image filled_square(const Image& like, int64_t size, uint8_t value) {
  Image square{size, size, like.mode, {}, like.palette};
  square.pixels.resize(static_cast<size_t>(size * size * bytes_per_pixel(like.mode)), value);
  if (like.mode == PixelMode::grey16) {
    const uint16_t wide = value;
    for (size_t i = 0; i < square.pixels.size(); i += 2) std::memcpy(square.pixels.data() + i, &wide, 2);
  }
  return square;
}

Image longest_to_square(const Image& image, const PreprocessSpec& spec) {
  const double ratio = static_cast<double>(std::max(image.width, image.height)) / static_cast<double>(spec.size);
  const auto scaled = [&](int64_t side) {
    return std::clamp<int64_t>(round_half_even(static_cast<double>(side) / ratio), 1, spec.size);
  };
  const auto small = resize(image, scaled(image.width), scaled(image.height), spec.interpolation);
  auto square = filled_square(small, spec.size, spec.fill_color);
  const auto step = bytes_per_pixel(small.mode);
  const auto left = (spec.size - small.width) / 2;
  const auto top = (spec.size - small.height) / 2;
  for (int64_t y = 0; y < small.height; ++y) {
    std::memcpy(square.row(top + y) + left * step, small.row(y), static_cast<size_t>(small.width * step));
  }
  return square;
}

Image squash_to_square(const Image& image, const PreprocessSpec& spec) {
  const auto side = resized_side(spec);
  return detail::resize_part(image, side, side, centre(side, side, spec.size), spec.interpolation);
}

/// What Google's programs do: see PreprocessSpec::antialias.
Image to_square_without_antialias(const Image& image, const PreprocessSpec& spec) {
  auto width = resized_side(spec), height = width;
  if (spec.resize_mode == ResizeMode::shortest) {
    const float ratio = static_cast<float>(width) / static_cast<float>(std::min(image.width, image.height));
    width = round_half_even(static_cast<float>(image.width) * ratio);
    height = round_half_even(static_cast<float>(image.height) * ratio);
  }
  return detail::resize_part_without_antialias(
      to_rgb(image), width, height, {(width - spec.size) / 2, (height - spec.size) / 2, spec.size, spec.size});
}

Image to_square(const Image& image, const PreprocessSpec& spec) {
  if (!spec.antialias) return to_square_without_antialias(image, spec);
  switch (spec.resize_mode) {
    case ResizeMode::shortest:
      return shortest_to_square(image, spec);
    case ResizeMode::longest:
      return longest_to_square(image, spec);
    case ResizeMode::squash:
      return squash_to_square(image, spec);
  }
  CONTRASTIVE_INTERNAL_ASSERT(false);
  return {};
}

/// The largest central box whose aspect is within the bounds.
Box central_box(int64_t width, int64_t height) {
  const double aspect = static_cast<double>(width) / static_cast<double>(height);
  auto w = width;
  auto h = height;
  if (aspect < kAspectMin) {
    h = std::clamp<int64_t>(round_half_even(static_cast<double>(width) / kAspectMin), 1, height);
  } else if (aspect > kAspectMax) {
    w = std::clamp<int64_t>(round_half_even(static_cast<double>(height) * kAspectMax), 1, width);
  }
  return {(width - w) / 2, (height - h) / 2, w, h};
}

Box draw_random_resized(int64_t width, int64_t height, const TrainCropOptions& options, RandomStream& random) {
  const auto area = static_cast<double>(width) * static_cast<double>(height);
  for (int i = 0; i < kTries; ++i) {
    const double target = area * random.uniform(options.scale_min, options.scale_max);
    const double aspect = std::exp(random.uniform(std::log(kAspectMin), std::log(kAspectMax)));
    const auto w = round_half_even(std::sqrt(target * aspect));
    const auto h = round_half_even(std::sqrt(target / aspect));
    if (w < 1 || w > width || h < 1 || h > height) continue;
    const auto top = random.below(height - h + 1);
    const auto left = random.below(width - w + 1);
    return {left, top, w, h};
  }
  return central_box(width, height);
}

Box draw_random_square(int64_t width, int64_t height, RandomStream& random) {
  const auto side = std::min(width, height);
  const auto offset = random.below(std::max(width, height) - side + 1);
  return width > height ? Box{offset, 0, side, side} : Box{0, offset, side, side};
}

void check_size_argument(const char* operation, int64_t size) {
  if (size < 1) throw Error(fmt::format("[{}] size must be at least 1, but is {}", operation, size));
}

void check_spec(const PreprocessSpec& spec) {
  check_size_argument("preprocess_for_evaluation", spec.size);
  if (!(spec.crop_fraction > 0 && spec.crop_fraction <= 1)) {
    throw Error(
        fmt::format("[preprocess_for_evaluation] crop_fraction must be in (0, 1], but is {}", spec.crop_fraction));
  }
  const bool crops = spec.resize_mode != ResizeMode::longest;
  if (!crops && (spec.crop_fraction < 1 || !spec.antialias)) {
    throw Error("[preprocess_for_evaluation] crop_fraction and antialias false need resize_mode shortest or squash");
  }
  if (!spec.antialias && spec.interpolation != Interpolation::bilinear) {
    throw Error("[preprocess_for_evaluation] antialias false needs bilinear interpolation");
  }
}

void check_output(const char* operation, int64_t size, std::span<uint8_t> out) {
  check_size_argument(operation, size);
  if (static_cast<int64_t>(out.size()) == size * size * 3) return;
  throw Error(fmt::format("[{}] out must hold {} x {} x 3 = {} bytes, but holds {}", operation, size, size,
                          size * size * 3, out.size()));
}

void resample_square(const detail::PixelView& source, int64_t size, std::span<uint8_t> out) {
  detail::resample(source, 3, size, size, {0, 0, size, size}, Interpolation::bicubic, out.data());
}

void square_without_crop(const Image& image, int64_t size, const TrainCropOptions& options, std::span<uint8_t> out) {
  if (options.evaluation.size != size) {
    throw Error(
        fmt::format("[crop_for_training] without a crop, size must be that of the evaluation preprocessing, {}, "
                    "but is {}",
                    options.evaluation.size, size));
  }
  const auto square = preprocess_for_evaluation(image, options.evaluation);
  std::copy(square.pixels.begin(), square.pixels.end(), out.begin());
}

/// Of libjpeg's SIMD sizes the smallest that leaves the crop the side that was asked for.
int denominator_for(const Box& box, int64_t size, const TrainCropOptions& options) {
  if (options.jpeg_scaling == JpegScaling::none) return 1;
  const double wanted = options.jpeg_scaling_ratio * static_cast<double>(size);
  const auto side = static_cast<double>(std::min(box.width, box.height));
  for (const int denominator : {8, 4, 2}) {
    if (side / denominator >= wanted) return denominator;
  }
  return 1;
}

/// The pixels of an image reduced to 1 / `denominator` that `box` touches.
Box reduced_box(const Box& box, int64_t denominator) {
  const auto left = box.left / denominator;
  const auto top = box.top / denominator;
  const auto end = [denominator](int64_t full) { return (full + denominator - 1) / denominator; };
  return {left, top, end(box.left + box.width) - left, end(box.top + box.height) - top};
}

/// Decodes what `box` needs into this thread's scratch.
detail::PixelView read_region(detail::JpegReader& reader, const Box& box) {
  thread_local detail::ScratchBuffer scratch;
  const auto region = reader.region_around(box);
  const auto stride = region.width * 3;
  // Room past the end lets the resampler read its last rows in place.
  const auto size = static_cast<size_t>(stride * region.height) + 256;
  uint8_t* pixels = scratch.bytes(size);
  reader.read_rgb(region, pixels);
  return {pixels + (box.left - region.left) * 3, stride, box.width, box.height, pixels + size};
}

/// Decodes `box`, in full-size pixels, and resizes it to the square.
void read_square(detail::JpegReader& reader, const Box& box, int64_t size, const TrainCropOptions& options,
                 std::span<uint8_t> out) {
  const int denominator = denominator_for(box, size, options);
  if (denominator == 1) return resample_square(read_region(reader, box), size, out);
  reader.scale_down(denominator);
  const auto reduced = reduced_box(box, denominator);
  const auto in_reduced = [denominator](int64_t full) { return static_cast<double>(full) / denominator; };
  const detail::SourceBox source{in_reduced(box.left) - static_cast<double>(reduced.left),
                                 in_reduced(box.top) - static_cast<double>(reduced.top), in_reduced(box.width),
                                 in_reduced(box.height)};
  detail::resample_box(read_region(reader, reduced), 3, source, size, size, Interpolation::bicubic, out.data());
}

}  // namespace

Image preprocess_for_evaluation(const Image& image, const PreprocessSpec& spec) {
  check_spec(spec);
  return to_rgb(to_square(image, spec));
}

Box draw_train_crop(int64_t width, int64_t height, const TrainCropOptions& options, RandomStream& random) {
  if (width < 1 || height < 1) {
    throw Error(fmt::format("[draw_train_crop] sides must be at least 1, but the image is {} x {}", width, height));
  }
  switch (options.kind) {
    case TrainCrop::random_resized:
      return draw_random_resized(width, height, options, random);
    case TrainCrop::random_square:
      return draw_random_square(width, height, random);
    case TrainCrop::none:
      return {0, 0, width, height};
  }
  CONTRASTIVE_INTERNAL_ASSERT(false);
  return {};
}

void decode_for_training(std::span<const uint8_t> bytes, int64_t size, const TrainCropOptions& options,
                         RandomStream& random, std::span<uint8_t> out, const DecodeLimits& limits) {
  check_output("decode_for_training", size, out);
  if (!(options.jpeg_scaling_ratio >= 1.0)) {
    throw Error(fmt::format("[decode_for_training] jpeg_scaling_ratio must be at least 1, but is {}",
                            options.jpeg_scaling_ratio));
  }
  const bool needs_a_part = options.kind != TrainCrop::none;
  if (needs_a_part && detail::recognise_format(bytes) == detail::Format::jpeg) {
    detail::JpegReader reader(bytes);
    const auto info = reader.info();
    detail::check_size("JPEG", info.width, info.height, limits);
    if (!reader.converts_to_rgb()) return crop_for_training(reader.read(limits), size, options, random, out);
    const auto box = draw_train_crop(info.width, info.height, options, random);
    return read_square(reader, box, size, options, out);
  }
  crop_for_training(decode_image(bytes, limits), size, options, random, out);
}

void crop_for_training(const Image& image, int64_t size, const TrainCropOptions& options, RandomStream& random,
                       std::span<uint8_t> out) {
  check_output("crop_for_training", size, out);
  if (image.mode != PixelMode::rgb) return crop_for_training(to_rgb(image), size, options, random, out);
  if (options.kind == TrainCrop::none) return square_without_crop(image, size, options, out);
  const auto box = draw_train_crop(image.width, image.height, options, random);
  resample_square(detail::view_of(image, box), size, out);
}

}  // namespace contrastive::image
