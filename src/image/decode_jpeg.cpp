#include <algorithm>
#include <array>
#include <csetjmp>
#include <cstdio>
#include <string>
#include <vector>

#include <fmt/format.h>

// libjpeg's own interface between its parts shows which routine decodes the codes; without it libjpeg's is used.
#if __has_include(<jpegint.h>)
#define JPEG_INTERNALS
#endif
#include <jpeglib.h>

#include "contrastive/core/error.h"

#include "formats.h"
#include "guarded.h"
#include "jpeg_huffman.h"
#include "jpeg_memory.h"

namespace contrastive::image::detail {
namespace {

/// A progressive file may repeat scans without end; encoders write about ten.
constexpr int kMaxScans = 500;
constexpr int kRowsPerCall = 16;
/// Where the end marker is looked for: some files have padding after it.
constexpr size_t kTailBytes = 256;

}  // namespace

/// libjpeg's structures and what its callbacks leave behind. The callbacks never print: libjpeg's warnings (a damaged
/// code is replaced by zeros) are tolerated as PIL does, the end of the data is not. A thread uses the same State for
/// one image after the other.
struct JpegReader::State : JpegMemory {
  jpeg_decompress_struct decoder{};
  jpeg_error_mgr errors{};
  jpeg_source_mgr source{};
  jpeg_progress_mgr progress{};
  std::jmp_buf target;
  std::span<const uint8_t> bytes;
  int denominator = 1;
  bool truncated = false;
  bool too_many_scans = false;
  bool gave_up = false;
  char message[JMSG_LENGTH_MAX] = {};
  JpegHuffman huffman;
  std::vector<uint8_t> last_row;

  ~State() { jpeg_destroy_decompress(&decoder); }

  static State& of(j_common_ptr common) { return static_cast<State&>(*static_cast<JpegMemory*>(common->client_data)); }
  static State& of(j_decompress_ptr decoder) { return of(reinterpret_cast<j_common_ptr>(decoder)); }

  void open();
  void close();
  void prepare();
  std::string position() const;
  bool has_end_marker() const;
  bool use_own_huffman();
  template <typename Calls>
  bool run(const Calls& calls);
  template <typename Calls>
  void decode(J_COLOR_SPACE colour, const Calls& calls);
};

void JpegReader::State::prepare() {
  decoder.err = jpeg_std_error(&errors);
  decoder.client_data = static_cast<JpegMemory*>(this);
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
  return fmt::format("after {} of {} rows", int64_t{decoder.output_scanline} * denominator, decoder.image_height);
}

/// Returns: false if our own decoding of the codes gave up.
template <typename Calls>
bool JpegReader::State::run(const Calls& calls) {
  if (guarded(target, calls)) return true;
  if (gave_up) return false;
  if (truncated)
    throw DataError(fmt::format("image: JPEG is truncated: its {} bytes end {}", bytes.size(), position()));
  if (too_many_scans) throw DataError(fmt::format("image: JPEG has more than {} scans", kMaxScans));
  throw DataError(fmt::format("image: JPEG of {} bytes is damaged: {}", bytes.size(), message));
}

/// Reads the header, of the same bytes anew if need be.
void JpegReader::State::open() {
  jpeg_destroy_decompress(&decoder);
  decoder = {};
  truncated = too_many_scans = gave_up = false;
  prepare();
  run([this] {
    jpeg_create_decompress(&decoder);
    serve(decoder);
    decoder.src = &source;
    decoder.progress = &progress;
    jpeg_read_header(&decoder, TRUE);
  });
  // Later versions of libjpeg-turbo, which may stand in for ours when a program runs, know others.
  if (decoder.data_precision != BITS_IN_JSAMPLE) {
    throw DataError(
        fmt::format("image: JPEG has {} bits a sample, expected {}", decoder.data_precision, BITS_IN_JSAMPLE));
  }
}

/// Gives the memory of an image back, but for what is kept for the next one.
void JpegReader::State::close() {
  jpeg_destroy_decompress(&decoder);
  decoder = {};
  reset();
}

bool JpegReader::State::use_own_huffman() {
#ifdef JPEG_INTERNALS
  if (!JpegHuffman::handles(decoder)) return false;
  huffman.begin(decoder);
  decoder.entropy->decode_mcu = [](j_decompress_ptr jpeg, JBLOCKROW* blocks) -> boolean {
    auto& state = of(jpeg);
    if (state.huffman.decode_mcu(blocks)) return TRUE;
    state.gave_up = true;
    std::longjmp(state.target, 1);
  };
  return true;
#else
  return false;
#endif
}

/// Starts to decode and makes the calls that read the rows: once more with libjpeg alone if our own part gave up, so
/// that bytes, errors and tolerance are always libjpeg's.
template <typename Calls>
void JpegReader::State::decode(J_COLOR_SPACE colour, const Calls& calls) {
  const auto start = [this, colour] {
    decoder.out_color_space = colour;
    decoder.dct_method = JDCT_ISLOW;
    decoder.do_fancy_upsampling = TRUE;
    decoder.scale_num = 1;
    decoder.scale_denom = static_cast<unsigned>(denominator);
    jpeg_start_decompress(&decoder);
  };
  run(start);
  if (!use_own_huffman()) {
    run(calls);
    return;
  }
  if (run(calls)) return;
  open();
  run(start);
  run(calls);
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

/// Damage past the rows that count has to show as well. `row`: room for one.
void read_to_end(j_decompress_ptr decoder, uint8_t* row) {
  const auto left = decoder->output_height - decoder->output_scanline;
  if (left == 0) return;
  if (left > 1) jpeg_skip_scanlines(decoder, left - 1);
  read_rows(decoder, row, 0, 1);
}

}  // namespace

JpegReader::JpegReader(std::span<const uint8_t> bytes) : state_(take_state()) {
  state_->bytes = bytes;
  state_->denominator = 1;
  state_->open();
}

JpegReader::~JpegReader() {
  state_->close();
  spare_state() = std::move(state_);
}

std::unique_ptr<JpegReader::State>& JpegReader::spare_state() {
  thread_local std::unique_ptr<State> state;
  return state;
}

std::unique_ptr<JpegReader::State> JpegReader::take_state() {
  auto& spare = spare_state();
  return spare ? std::move(spare) : std::make_unique<State>();
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
  J_COLOR_SPACE colour = JCS_RGB;
  switch (decoder.num_components) {
    case 1:
      image.mode = PixelMode::grey;
      colour = JCS_GRAYSCALE;
      break;
    case 3:
      break;
    case 4:
      image.mode = PixelMode::cmyk;
      colour = JCS_CMYK;
      break;
    default:
      throw DataError(fmt::format("image: JPEG has {} components, expected 1 (grey), 3 (colour) or 4 (CMYK)",
                                  decoder.num_components));
  }
  const auto stride = image.width * bytes_per_pixel(image.mode);
  image.pixels.resize(static_cast<size_t>(image.height * stride));
  uint8_t* out = image.pixels.data();
  const auto height = image.height;
  state_->decode(colour, [&decoder, out, stride, height] { read_rows(&decoder, out, stride, height); });
  // PIL takes every CMYK file for Adobe's, which store 255 - ink.
  if (image.mode == PixelMode::cmyk) {
    for (auto& value : image.pixels) value = static_cast<uint8_t>(255 - value);
  }
  return image;
}

void JpegReader::scale_down(int denominator) {
  CONTRASTIVE_INTERNAL_ASSERT(denominator == 1 || denominator == 2 || denominator == 4 || denominator == 8);
  state_->denominator = denominator;
}

Box JpegReader::region_around(const Box& box) const {
  const auto& decoder = state_->decoder;
  // Upsampling looks one sample aside, so that a unit more on both sides keeps the columns of the box exact.
  const int64_t unit = int64_t{decoder.max_h_samp_factor} * (DCTSIZE / state_->denominator);
  const int64_t width = (int64_t{decoder.image_width} + state_->denominator - 1) / state_->denominator;
  const int64_t begin = std::max<int64_t>(box.left / unit - 1, 0) * unit;
  const int64_t end = std::min<int64_t>(box.left + box.width + unit, width);
  return {begin, box.top, end - begin, box.height};
}

void JpegReader::read_rgb(const Box& region, uint8_t* out) {
  auto& decoder = state_->decoder;
  bool cut_as_asked = true;
  const bool to_the_end = !state_->has_end_marker();
  state_->last_row.resize(size_t{decoder.image_width} * 3);
  uint8_t* last_row = state_->last_row.data();
  state_->decode(JCS_RGB, [&decoder, &region, &cut_as_asked, to_the_end, last_row, out] {
    if (region.width < decoder.output_width) {
      auto left = static_cast<JDIMENSION>(region.left);
      auto width = static_cast<JDIMENSION>(region.width);
      jpeg_crop_scanline(&decoder, &left, &width);
      cut_as_asked = left == region.left && width == region.width;
      if (!cut_as_asked) return;
    }
    if (region.top > 0) jpeg_skip_scanlines(&decoder, static_cast<JDIMENSION>(region.top));
    read_rows(&decoder, out, region.width * 3, region.height);
    if (to_the_end) read_to_end(&decoder, last_row);
  });
  CONTRASTIVE_INTERNAL_ASSERT(cut_as_asked);
}

}  // namespace contrastive::image::detail
