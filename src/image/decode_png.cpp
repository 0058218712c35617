#include <bit>
#include <csetjmp>
#include <cstring>
#include <vector>

#include <fmt/format.h>
#include <png.h>

#include "contrastive/core/error.h"

#include "formats.h"
#include "guarded.h"

namespace contrastive::image::detail {
namespace {

/// Deflate can't shrink more, so fewer bytes can't hold the claimed pixels.
constexpr int64_t kMaxDeflateRatio = 1032;

/// What libpng's callbacks see; filled by them, read after `guarded` returns.
struct ReadState {
  std::span<const uint8_t> bytes;
  size_t position = 0;
  bool truncated = false;
  std::jmp_buf target;
  char message[128] = {};
};

void on_read(png_structp png, png_bytep out, size_t count) {
  auto* state = static_cast<ReadState*>(png_get_io_ptr(png));
  if (count > state->bytes.size() - state->position) {
    state->truncated = true;
    png_error(png, "truncated");
  }
  std::memcpy(out, state->bytes.data() + state->position, count);
  state->position += count;
}

[[noreturn]] void on_error(png_structp png, png_const_charp message) {
  auto* state = static_cast<ReadState*>(png_get_error_ptr(png));
  std::strncpy(state->message, message, sizeof(state->message) - 1);
  std::longjmp(state->target, 1);
}

void on_warning(png_structp, png_const_charp) {}

/// Owns libpng's structures.
class PngReader {
 public:
  explicit PngReader(std::span<const uint8_t> bytes) {
    state_.bytes = bytes;
    const bool created = guarded(state_.target, [this] {
      png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, &state_, on_error, on_warning);
      if (png_ != nullptr) info_ = png_create_info_struct(png_);
    });
    if (!created || info_ == nullptr) {
      png_destroy_read_struct(&png_, &info_, nullptr);
      throw Error(fmt::format("image: libpng can't be set up: {}", state_.message));
    }
  }

  ~PngReader() { png_destroy_read_struct(&png_, &info_, nullptr); }
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;

  ImageInfo read_header() {
    run([this] {
      png_set_read_fn(png_, &state_, on_read);
      png_set_user_limits(png_, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
      // Text, profiles and times don't change the pixels, and may be bombs of their own.
      png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
      png_read_info(png_, info_);
    });
    return {png_get_image_width(png_, info_), png_get_image_height(png_, info_)};
  }

  Image read_pixels() {
    const auto header = read_header_fields();
    check_plausible(header);
    Image image{header.width, header.height, mode_of(header), {}, palette()};
    const auto stride = image.width * bytes_per_pixel(image.mode);
    image.pixels.resize(static_cast<size_t>(image.height * stride));
    std::vector<png_bytep> rows(static_cast<size_t>(image.height));
    for (int64_t y = 0; y < image.height; ++y) rows[static_cast<size_t>(y)] = image.row(y);
    png_bytepp row_pointers = rows.data();
    bool fits = true;
    run([&] {
      set_transformations(header);
      fits = static_cast<int64_t>(png_get_rowbytes(png_, info_)) == stride;
      if (fits) png_read_image(png_, row_pointers);
    });
    CONTRASTIVE_INTERNAL_ASSERT(fits);
    if (image.mode == PixelMode::bilevel) {
      for (auto& value : image.pixels) value = value != 0 ? 255 : 0;
    }
    return image;
  }

 private:
  struct Header {
    int64_t width;
    int64_t height;
    int bit_depth;
    int colour;
  };

  template <typename Calls>
  void run(const Calls& calls) {
    if (guarded(state_.target, calls)) return;
    if (state_.truncated) throw DataError(fmt::format("image: PNG is truncated after {} bytes", state_.bytes.size()));
    throw DataError(fmt::format("image: PNG of {} bytes is damaged: {}", state_.bytes.size(), state_.message));
  }

  Header read_header_fields() const {
    return {png_get_image_width(png_, info_), png_get_image_height(png_, info_), png_get_bit_depth(png_, info_),
            png_get_color_type(png_, info_)};
  }

  void check_plausible(const Header& header) const {
    const int64_t bits = header.bit_depth * png_get_channels(png_, info_);
    const int64_t least_size = (header.width * bits + 7) / 8 * header.height;
    const auto size = static_cast<int64_t>(state_.bytes.size());
    if (least_size / kMaxDeflateRatio <= size) return;
    throw DataError(fmt::format("image: PNG is truncated: {} bytes can't hold the {} x {} pixels of its header", size,
                                header.width, header.height));
  }

  static PixelMode mode_of(const Header& header) {
    const bool wide = header.bit_depth == 16;
    switch (header.colour) {
      case PNG_COLOR_TYPE_GRAY:
        if (wide) return PixelMode::grey16;
        return header.bit_depth == 1 ? PixelMode::bilevel : PixelMode::grey;
      case PNG_COLOR_TYPE_PALETTE:
        return PixelMode::palette;
      case PNG_COLOR_TYPE_GRAY_ALPHA:
        return wide ? PixelMode::rgba : PixelMode::grey_alpha;
      case PNG_COLOR_TYPE_RGB_ALPHA:
        return PixelMode::rgba;
      default:
        return PixelMode::rgb;
    }
  }

  void set_transformations(const Header& header) {
    const bool grey = header.colour == PNG_COLOR_TYPE_GRAY;
    if (header.bit_depth < 8) grey ? png_set_expand_gray_1_2_4_to_8(png_) : png_set_packing(png_);
    if (header.bit_depth == 16 && !grey) png_set_strip_16(png_);
    if (header.bit_depth == 16 && grey && std::endian::native == std::endian::little) png_set_swap(png_);
    if (header.bit_depth == 16 && header.colour == PNG_COLOR_TYPE_GRAY_ALPHA) png_set_gray_to_rgb(png_);
    png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
  }

  std::vector<uint8_t> palette() const {
    png_colorp entries = nullptr;
    int count = 0;
    if (png_get_color_type(png_, info_) != PNG_COLOR_TYPE_PALETTE) return {};
    if (png_get_PLTE(png_, info_, &entries, &count) == 0) return {};
    std::vector<uint8_t> values;
    values.reserve(static_cast<size_t>(count) * 3);
    for (int i = 0; i < count; ++i) {
      values.insert(values.end(), {entries[i].red, entries[i].green, entries[i].blue});
    }
    return values;
  }

  ReadState state_;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
};

}  // namespace

ImageInfo read_png_info(std::span<const uint8_t> bytes) {
  return PngReader(bytes).read_header();
}

Image decode_png(std::span<const uint8_t> bytes, const DecodeLimits& limits) {
  PngReader reader(bytes);
  const auto info = reader.read_header();
  check_size("PNG", info.width, info.height, limits);
  return reader.read_pixels();
}

}  // namespace contrastive::image::detail
