#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include <fmt/format.h>
#include <jpeglib.h>
#include <png.h>

#include "contrastive/core/error.h"
#include "contrastive/image/image.h"

#include "guarded.h"

namespace contrastive::image {
namespace {

void check_rgb(const char* operation, const Image& image) {
  if (image.mode == PixelMode::rgb && image.width > 0 && image.height > 0 &&
      static_cast<int64_t>(image.pixels.size()) == image.width * image.height * 3) {
    return;
  }
  throw Error(fmt::format("[{}] expected an RGB image with at least one pixel, but it is {} x {} with {} bytes",
                          operation, image.width, image.height, image.pixels.size()));
}

/// libpng's and libjpeg's error handlers fill it.
struct Failure {
  std::jmp_buf target;
  char message[JMSG_LENGTH_MAX] = {};
};

void write_png(png_structp png, png_infop info, const Image& rgb) {
  png_set_IHDR(png, info, static_cast<png_uint_32>(rgb.width), static_cast<png_uint_32>(rgb.height), 8,
               PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_write_info(png, info);
  for (int64_t y = 0; y < rgb.height; ++y) png_write_row(png, rgb.row(y));
  png_write_end(png, nullptr);
}

}  // namespace

std::vector<uint8_t> encode_png(const Image& rgb) {
  check_rgb("encode_png", rgb);
  Failure failure;
  std::vector<uint8_t> file;
  png_structp png = nullptr;
  png_infop info = nullptr;
  const bool written = detail::guarded(failure.target, [&] {
    png = png_create_write_struct(
        PNG_LIBPNG_VER_STRING, &failure,
        [](png_structp writer, png_const_charp message) {
          auto* state = static_cast<Failure*>(png_get_error_ptr(writer));
          std::strncpy(state->message, message, sizeof(state->message) - 1);
          std::longjmp(state->target, 1);
        },
        [](png_structp, png_const_charp) {});
    if (png == nullptr) return;
    info = png_create_info_struct(png);
    if (info == nullptr) return;
    png_set_write_fn(
        png, &file,
        [](png_structp writer, png_bytep bytes, size_t count) {
          auto* out = static_cast<std::vector<uint8_t>*>(png_get_io_ptr(writer));
          out->insert(out->end(), bytes, bytes + count);
        },
        [](png_structp) {});
    write_png(png, info, rgb);
  });
  const bool made = info != nullptr;
  png_destroy_write_struct(&png, &info);
  if (!written || !made) throw Error(fmt::format("[encode_png] {} x {}: {}", rgb.width, rgb.height, failure.message));
  return file;
}

std::vector<uint8_t> encode_jpeg(const Image& rgb, int quality) {
  check_rgb("encode_jpeg", rgb);
  if (quality < 1 || quality > 100) {
    throw Error(fmt::format("[encode_jpeg] quality must be in [1, 100], but is {}", quality));
  }
  Failure failure;
  jpeg_compress_struct encoder{};
  jpeg_error_mgr errors{};
  unsigned char* buffer = nullptr;
  unsigned long size = 0;
  encoder.err = jpeg_std_error(&errors);
  encoder.client_data = &failure;
  errors.error_exit = [](j_common_ptr common) {
    auto* state = static_cast<Failure*>(common->client_data);
    common->err->format_message(common, state->message);
    std::longjmp(state->target, 1);
  };
  errors.emit_message = [](j_common_ptr, int) {};
  const bool written = detail::guarded(failure.target, [&] {
    jpeg_create_compress(&encoder);
    jpeg_mem_dest(&encoder, &buffer, &size);
    encoder.image_width = static_cast<JDIMENSION>(rgb.width);
    encoder.image_height = static_cast<JDIMENSION>(rgb.height);
    encoder.input_components = 3;
    encoder.in_color_space = JCS_RGB;
    jpeg_set_defaults(&encoder);
    jpeg_set_quality(&encoder, quality, TRUE);
    jpeg_start_compress(&encoder, TRUE);
    while (encoder.next_scanline < encoder.image_height) {
      auto* row = const_cast<JSAMPROW>(rgb.row(encoder.next_scanline));
      jpeg_write_scanlines(&encoder, &row, 1);
    }
    jpeg_finish_compress(&encoder);
  });
  jpeg_destroy_compress(&encoder);
  const std::unique_ptr<unsigned char, decltype(&std::free)> owner(buffer, &std::free);
  if (!written) throw Error(fmt::format("[encode_jpeg] {} x {}: {}", rgb.width, rgb.height, failure.message));
  return {buffer, buffer + size};
}

}  // namespace contrastive::image
