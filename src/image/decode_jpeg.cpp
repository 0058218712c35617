#include <algorithm>
#include <array>
#include <csetjmp>
#include <cstdio>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <jpeglib.h>

#include "contrastive/core/error.h"

#include "formats.h"
#include "guarded.h"

namespace contrastive::image::detail {
namespace {

/// A progressive file may repeat scans without end; encoders write about ten.
constexpr int kMaxScans = 500;
constexpr int kRowsPerCall = 16;
/// Where the end marker is looked for: some files have padding after it.
constexpr size_t kTailBytes = 256;

}  // namespace

/// libjpeg's structures and what its callbacks leave behind. The callbacks never print: libjpeg's warnings (a damaged
/// code is replaced by zeros) are tolerated as PIL does, the end of the data is not.
struct JpegReader::State {
  jpeg_decompress_struct decoder{};
  jpeg_error_mgr errors{};
  jpeg_source_mgr source{};
  jpeg_progress_mgr progress{};
  std::jmp_buf target;
  std::span<const uint8_t> bytes;
  bool truncated = false;
  bool too_many_scans = false;
  char message[JMSG_LENGTH_MAX] = {};

  static State& of(j_common_ptr common) { return *static_cast<State*>(common->client_data); }
  static State& of(j_decompress_ptr decoder) { return *static_cast<State*>(decoder->client_data); }

  void prepare();
  std::string position() const;
  bool has_end_marker() const;
  void read_to_end();
  template <typename Calls>
  void run(const Calls& calls);
  void start(J_COLOR_SPACE colour);
};

void JpegReader::State::prepare() {
  decoder.err = jpeg_std_error(&errors);
  decoder.client_data = this;
  errors.error_exit = [](j_common_ptr common) {
    auto& state = of(common);
    common->err->format_message(common, state.message);
    std::longjmp(state.target, 1);
  };
  errors.emit_message = [](j_common_ptr, int) {};
  errors.output_message = [](j_common_ptr) {};

  source.next_input_byte = bytes.data();
  source.bytes_in_buffer = bytes.size();
  source.init_source = [](j_decompress_ptr) {};
  source.term_source = [](j_decompress_ptr) {};
  source.resync_to_restart = jpeg_resync_to_restart;
  source.fill_input_buffer = [](j_decompress_ptr jpeg) -> boolean {
    of(jpeg).truncated = true;
    std::longjmp(of(jpeg).target, 1);
  };
  source.skip_input_data = [](j_decompress_ptr jpeg, long count) {
    if (count <= 0) return;
    auto& src = *jpeg->src;
    if (static_cast<size_t>(count) > src.bytes_in_buffer) src.fill_input_buffer(jpeg);
    src.next_input_byte += count;
    src.bytes_in_buffer -= static_cast<size_t>(count);
  };

  progress.progress_monitor = [](j_common_ptr common) {
    auto& state = of(common);
    if (state.decoder.input_scan_number <= kMaxScans) return;
    state.too_many_scans = true;
    std::longjmp(state.target, 1);
  };
}

std::string JpegReader::State::position() const {
  if (decoder.output_height == 0) return "within the header";
  return fmt::format("after {} of {} rows", decoder.output_scanline, decoder.image_height);
}

template <typename Calls>
void JpegReader::State::run(const Calls& calls) {
  if (guarded(target, calls)) return;
  if (truncated)
    throw DataError(fmt::format("image: JPEG is truncated: its {} bytes end {}", bytes.size(), position()));
  if (too_many_scans) throw DataError(fmt::format("image: JPEG has more than {} scans", kMaxScans));
  throw DataError(fmt::format("image: JPEG of {} bytes is damaged: {}", bytes.size(), message));
}

void JpegReader::State::start(J_COLOR_SPACE colour) {
  run([this, colour] {
    decoder.out_color_space = colour;
    decoder.dct_method = JDCT_ISLOW;
    decoder.do_fancy_upsampling = TRUE;
    jpeg_start_decompress(&decoder);
  });
}

/// Pixel data can't contain the marker's bytes, so that they mean what they say wherever they stand.
bool JpegReader::State::has_end_marker() const {
  constexpr std::array<uint8_t, 2> kEndMarker{0xFF, 0xD9};
  const auto tail = bytes.last(std::min(bytes.size(), kTailBytes));
  return std::search(tail.begin(), tail.end(), kEndMarker.begin(), kEndMarker.end()) != tail.end();
}

namespace {

/// Reads `count` rows of `stride` bytes.
void read_rows(j_decompress_ptr decoder, uint8_t* out, int64_t stride, int64_t count) {
  JSAMPROW rows[kRowsPerCall];
  for (int64_t done = 0; done < count;) {
    const auto wanted = std::min<int64_t>(kRowsPerCall, count - done);
    for (int64_t i = 0; i < wanted; ++i) rows[i] = out + (done + i) * stride;
    done += jpeg_read_scanlines(decoder, rows, static_cast<JDIMENSION>(wanted));
  }
}

}  // namespace

void JpegReader::State::read_to_end() {
  const auto left = decoder.output_height - decoder.output_scanline;
  if (left == 0) return;
  std::vector<uint8_t> row(size_t{decoder.output_width} * 3);
  uint8_t* out = row.data();
  run([this, left, out] {
    if (left > 1) jpeg_skip_scanlines(&decoder, left - 1);
    read_rows(&decoder, out, 0, 1);
  });
}

JpegReader::JpegReader(std::span<const uint8_t> bytes) : state_(std::make_unique<State>()) {
  auto& state = *state_;
  state.bytes = bytes;
  state.prepare();
  try {
    state.run([&state] {
      jpeg_create_decompress(&state.decoder);
      state.decoder.src = &state.source;
      state.decoder.progress = &state.progress;
      jpeg_read_header(&state.decoder, TRUE);
    });
  } catch (...) {
    jpeg_destroy_decompress(&state.decoder);
    throw;
  }
}

JpegReader::~JpegReader() {
  jpeg_destroy_decompress(&state_->decoder);
}

ImageInfo JpegReader::info() const {
  return {state_->decoder.image_width, state_->decoder.image_height};
}

bool JpegReader::converts_to_rgb() const {
  return state_->decoder.num_components == 1 || state_->decoder.num_components == 3;
}

Image JpegReader::read(const DecodeLimits& limits) {
  auto& decoder = state_->decoder;
  check_size("JPEG", decoder.image_width, decoder.image_height, limits);
  Image image{decoder.image_width, decoder.image_height, PixelMode::rgb, {}, {}};
  switch (decoder.num_components) {
    case 1:
      image.mode = PixelMode::grey;
      state_->start(JCS_GRAYSCALE);
      break;
    case 3:
      state_->start(JCS_RGB);
      break;
    case 4:
      image.mode = PixelMode::cmyk;
      state_->start(JCS_CMYK);
      break;
    default:
      throw DataError(fmt::format("image: JPEG has {} components, expected 1 (grey), 3 (colour) or 4 (CMYK)",
                                  decoder.num_components));
  }
  const auto stride = image.width * bytes_per_pixel(image.mode);
  image.pixels.resize(static_cast<size_t>(image.height * stride));
  uint8_t* out = image.pixels.data();
  const auto height = image.height;
  state_->run([&decoder, out, stride, height] { read_rows(&decoder, out, stride, height); });
  // PIL takes every CMYK file for Adobe's, which store 255 - ink.
  if (image.mode == PixelMode::cmyk) {
    for (auto& value : image.pixels) value = static_cast<uint8_t>(255 - value);
  }
  return image;
}

Box JpegReader::region_around(const Box& box) const {
  // Upsampling looks one sample aside, so that a unit more on both sides keeps the columns of the box exact.
  const int64_t unit = int64_t{state_->decoder.max_h_samp_factor} * DCTSIZE;
  const int64_t begin = std::max<int64_t>(box.left / unit - 1, 0) * unit;
  const int64_t end = std::min<int64_t>(box.left + box.width + unit, state_->decoder.image_width);
  return {begin, box.top, end - begin, box.height};
}

void JpegReader::read_rgb(const Box& region, uint8_t* out) {
  auto& decoder = state_->decoder;
  state_->start(JCS_RGB);
  bool cut_as_asked = true;
  state_->run([&decoder, &region, &cut_as_asked, out] {
    if (region.width < decoder.image_width) {
      auto left = static_cast<JDIMENSION>(region.left);
      auto width = static_cast<JDIMENSION>(region.width);
      jpeg_crop_scanline(&decoder, &left, &width);
      cut_as_asked = left == region.left && width == region.width;
      if (!cut_as_asked) return;
    }
    if (region.top > 0) jpeg_skip_scanlines(&decoder, static_cast<JDIMENSION>(region.top));
    read_rows(&decoder, out, region.width * 3, region.height);
  });
  CONTRASTIVE_INTERNAL_ASSERT(cut_as_asked);
  if (!state_->has_end_marker()) state_->read_to_end();
}

}  // namespace contrastive::image::detail
