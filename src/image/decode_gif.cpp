// The first frame of a GIF, laid out as Pillow's GifImagePlugin does: on the whole canvas, in mode P, or L where the
// palette only names the grey levels. Source of the format: the GIF89a specification, appendix F for the LZW code.

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include <fmt/format.h>

#include "contrastive/core/error.h"

#include "byte_reader.h"
#include "formats.h"

namespace contrastive::image::detail {
namespace {

constexpr int kMaxCodeBits = 12;
constexpr int kTableSize = 1 << kMaxCodeBits;
/// The longest string a code stands for, per byte of its 12 bits: bounds what a file of given size can hold.
constexpr int64_t kMaxExpansion = kTableSize * 8 / kMaxCodeBits;
constexpr uint8_t kHasPalette = 0x80;
constexpr uint8_t kInterlaced = 0x40;
constexpr uint8_t kHasTransparency = 0x01;

struct Frame {
  int64_t canvas_width = 0;
  int64_t canvas_height = 0;
  Box box;
  bool interlaced = false;
  std::optional<uint8_t> transparent;
  std::vector<uint8_t> palette;  ///< empty: grey
};

/// A palette whose entry i is the grey level i says nothing.
bool is_grey_ramp(std::span<const uint8_t> palette) {
  for (size_t i = 0; i < palette.size(); ++i) {
    if (palette[i] != i / 3) return false;
  }
  return true;
}

std::vector<uint8_t> read_palette(ByteReader& reader, uint8_t flags) {
  const auto bytes = reader.take(size_t{3} << ((flags & 7) + 1));
  if (is_grey_ramp(bytes)) return {};
  return {bytes.begin(), bytes.end()};
}

void skip_blocks(ByteReader& reader) {
  while (const auto size = reader.u8()) reader.take(size);
}

void read_extension(ByteReader& reader, Frame& frame) {
  constexpr uint8_t kGraphicControl = 0xF9;
  const auto label = reader.u8();
  const auto size = reader.u8();
  const auto block = reader.take(size);
  if (size == 0) return;
  if (label == kGraphicControl) {
    if (size < 4) reader.fail_damaged(fmt::format("a graphic control block of {} bytes", size));
    if ((block[0] & kHasTransparency) != 0) frame.transparent = block[3];
  }
  skip_blocks(reader);
}

void read_image_descriptor(ByteReader& reader, Frame& frame) {
  const int64_t left = reader.u16();
  const int64_t top = reader.u16();
  const int64_t width = reader.u16();
  const int64_t height = reader.u16();
  const auto flags = reader.u8();
  frame.box = {left, top, width, height};
  frame.interlaced = (flags & kInterlaced) != 0;
  frame.canvas_width = std::max(frame.canvas_width, left + width);
  frame.canvas_height = std::max(frame.canvas_height, top + height);
  if ((flags & kHasPalette) != 0) frame.palette = read_palette(reader, flags);
}

/// Reads up to the first frame's pixels.
Frame read_frame_header(ByteReader& reader) {
  Frame frame;
  reader.take(6);
  frame.canvas_width = reader.u16();
  frame.canvas_height = reader.u16();
  const auto flags = reader.u8();
  reader.take(2);
  if ((flags & kHasPalette) != 0) frame.palette = read_palette(reader, flags);
  for (;;) {
    switch (reader.u8()) {
      case '!':
        read_extension(reader, frame);
        break;
      case ',':
        read_image_descriptor(reader, frame);
        return frame;
      case ';':
        reader.fail_damaged("it has no frame");
      default:  // stray bytes between blocks, as some writers leave them
        break;
    }
  }
}

/// Takes codes of a growing number of bits out of a chain of sub-blocks.
class CodeReader {
 public:
  explicit CodeReader(ByteReader& reader) : reader_(reader) {}

  int next(int bits) {
    while (num_bits_ < bits) {
      buffer_ |= uint32_t{next_byte()} << num_bits_;
      num_bits_ += 8;
    }
    const auto code = static_cast<int>(buffer_ & ((1U << bits) - 1));
    buffer_ >>= bits;
    num_bits_ -= bits;
    return code;
  }

 private:
  uint8_t next_byte() {
    if (left_in_block_ == 0) left_in_block_ = reader_.u8();
    if (left_in_block_ == 0) reader_.fail_truncated();
    --left_in_block_;
    return reader_.u8();
  }

  ByteReader& reader_;
  uint32_t buffer_ = 0;
  int num_bits_ = 0;
  int left_in_block_ = 0;
};

/// Writes indices into the frame's box, rows in the order of the file.
class FrameWriter {
 public:
  FrameWriter(Image& image, const Frame& frame) : image_(image), frame_(frame) {}

  bool full() const { return y_ >= frame_.box.height; }

  void put(uint8_t index) {
    image_.row(frame_.box.top + y_)[frame_.box.left + x_] = index;
    if (++x_ == frame_.box.width) next_row();
  }

 private:
  /// Interlaced rows come in four passes: from 0 by 8, from 4 by 8, from 2 by 4, from 1 by 2.
  void next_row() {
    constexpr std::array<int64_t, 4> kFirst{0, 4, 2, 1};
    constexpr std::array<int64_t, 4> kStep{8, 8, 4, 2};
    x_ = 0;
    if (!frame_.interlaced) {
      ++y_;
      return;
    }
    y_ += kStep[pass_];
    while (y_ >= frame_.box.height && pass_ + 1 < kFirst.size()) y_ = kFirst[++pass_];
  }

  Image& image_;
  const Frame& frame_;
  int64_t x_ = 0;
  int64_t y_ = 0;
  size_t pass_ = 0;
};

/// LZW with the format's deferred clear: a full table is used on until the writer clears it.
class LzwDecoder {
 public:
  LzwDecoder(ByteReader& reader, int bits)
      : reader_(reader), codes_(reader), root_bits_(bits), clear_(1 << bits), next_(clear_ + 2), bits_(bits + 1) {}

  void decode(FrameWriter& out) {
    while (!out.full()) {
      const int code = codes_.next(bits_);
      if (code == clear_ + 1) reader_.fail_truncated();
      if (code == clear_) {
        reset();
      } else {
        write(expand(code), out);
      }
    }
  }

 private:
  void reset() {
    next_ = clear_ + 2;
    bits_ = root_bits_ + 1;
    previous_ = -1;
  }

  /// The string of a code, reversed, on the stack; learns a new code.
  std::span<const uint8_t> expand(int code) {
    const bool is_new = previous_ >= 0 && code == next_;
    if (code >= (previous_ < 0 ? clear_ : next_) && !is_new) reader_.fail_damaged("a code that isn't defined yet");
    size_t length = 0;
    if (is_new) stack_[length++] = first_;
    int at = is_new ? previous_ : code;
    while (at >= clear_) {
      stack_[length++] = suffix_[static_cast<size_t>(at)];
      at = prefix_[static_cast<size_t>(at)];
    }
    first_ = static_cast<uint8_t>(at);
    stack_[length++] = first_;
    if (previous_ >= 0 && next_ < kTableSize) learn();
    previous_ = code;
    return {stack_.data(), length};
  }

  void learn() {
    prefix_[static_cast<size_t>(next_)] = static_cast<int16_t>(previous_);
    suffix_[static_cast<size_t>(next_)] = first_;
    ++next_;
    if (next_ == 1 << bits_ && bits_ < kMaxCodeBits) ++bits_;
  }

  static void write(std::span<const uint8_t> reversed, FrameWriter& out) {
    for (auto it = reversed.rbegin(); it != reversed.rend() && !out.full(); ++it) out.put(*it);
  }

  ByteReader& reader_;
  CodeReader codes_;
  int root_bits_;
  int clear_;
  int next_;
  int bits_;
  int previous_ = -1;
  uint8_t first_ = 0;
  std::array<int16_t, kTableSize> prefix_{};
  std::array<uint8_t, kTableSize> suffix_{};
  /// A string is at most one byte longer than the table.
  std::array<uint8_t, kTableSize + 1> stack_{};
};

}  // namespace

ImageInfo read_gif_info(std::span<const uint8_t> bytes) {
  ByteReader reader(bytes, "GIF");
  const auto frame = read_frame_header(reader);
  return {frame.canvas_width, frame.canvas_height};
}

Image decode_gif(std::span<const uint8_t> bytes, const DecodeLimits& limits) {
  ByteReader reader(bytes, "GIF");
  const auto frame = read_frame_header(reader);
  check_size("GIF", frame.canvas_width, frame.canvas_height, limits);
  if (frame.box.width < 1 || frame.box.height < 1) {
    reader.fail_damaged(fmt::format("its first frame is {} x {}", frame.box.width, frame.box.height));
  }
  const int code_bits = reader.u8();
  if (code_bits < 1 || code_bits > 8) reader.fail_damaged(fmt::format("codes of {} bits", code_bits));
  if (frame.box.width * frame.box.height / kMaxExpansion > static_cast<int64_t>(bytes.size())) reader.fail_truncated();

  const auto mode = frame.palette.empty() ? PixelMode::grey : PixelMode::palette;
  Image image{frame.canvas_width, frame.canvas_height, mode, {}, frame.palette};
  image.pixels.resize(static_cast<size_t>(image.width * image.height), frame.transparent.value_or(0));
  FrameWriter writer(image, frame);
  LzwDecoder(reader, code_bits).decode(writer);
  return image;
}

}  // namespace contrastive::image::detail
