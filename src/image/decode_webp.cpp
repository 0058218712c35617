#include <fmt/format.h>
#include <webp/decode.h>

#include "contrastive/core/error.h"

#include "formats.h"

namespace contrastive::image::detail {
namespace {

const char* describe(VP8StatusCode status) {
  switch (status) {
    case VP8_STATUS_OUT_OF_MEMORY:
      return "out of memory";
    case VP8_STATUS_UNSUPPORTED_FEATURE:
      return "uses an unsupported feature";
    case VP8_STATUS_SUSPENDED:
    case VP8_STATUS_NOT_ENOUGH_DATA:
      return "is truncated";
    default:
      return "is damaged";
  }
}

[[noreturn]] void fail(VP8StatusCode status, size_t size) {
  throw DataError(fmt::format("image: WebP of {} bytes {}", size, describe(status)));
}

WebPBitstreamFeatures read_features(std::span<const uint8_t> bytes) {
  WebPBitstreamFeatures features;
  const auto status = WebPGetFeatures(bytes.data(), bytes.size(), &features);
  if (status != VP8_STATUS_OK) fail(status, bytes.size());
  return features;
}

}  // namespace

ImageInfo read_webp_info(std::span<const uint8_t> bytes) {
  const auto features = read_features(bytes);
  return {features.width, features.height};
}

Image decode_webp(std::span<const uint8_t> bytes, const DecodeLimits& limits) {
  WebPDecoderConfig config;
  CONTRASTIVE_INTERNAL_ASSERT(WebPInitDecoderConfig(&config));
  config.input = read_features(bytes);
  check_size("WebP", config.input.width, config.input.height, limits);
  if (config.input.has_animation != 0) throw DataError("image: WebP is an animation, expected a still image");

  Image image{
      config.input.width, config.input.height, config.input.has_alpha ? PixelMode::rgba : PixelMode::rgb, {}, {}};
  const auto stride = image.width * bytes_per_pixel(image.mode);
  image.pixels.resize(static_cast<size_t>(image.height * stride));
  config.output.colorspace = config.input.has_alpha ? MODE_RGBA : MODE_RGB;
  config.output.is_external_memory = 1;
  config.output.u.RGBA = {image.pixels.data(), static_cast<int>(stride), image.pixels.size()};
  const auto status = WebPDecode(bytes.data(), bytes.size(), &config);
  WebPFreeDecBuffer(&config.output);
  if (status != VP8_STATUS_OK) fail(status, bytes.size());
  return image;
}

}  // namespace contrastive::image::detail
