#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace contrastive::image::detail {

/// Reads little-endian numbers from bytes that may end anywhere. Throws: DataError that calls the file truncated.
class ByteReader {
 public:
  /// `format` is named in errors and must outlive the reader.
  ByteReader(std::span<const uint8_t> bytes, const char* format) : bytes_(bytes), format_(format) {}

  size_t position() const { return position_; }
  size_t size() const { return bytes_.size(); }

  std::span<const uint8_t> take(size_t count) {
    if (count > bytes_.size() - position_) fail_truncated();
    const auto part = bytes_.subspan(position_, count);
    position_ += count;
    return part;
  }
  uint8_t u8() { return take(1)[0]; }
  uint16_t u16() {
    const auto part = take(2);
    return static_cast<uint16_t>(part[0] | part[1] << 8);
  }
  uint32_t u32() {
    const uint32_t low = u16();
    return low | static_cast<uint32_t>(u16()) << 16;
  }

  /// Goes to a place counted from the start.
  void seek(size_t position) {
    if (position > bytes_.size()) fail_truncated();
    position_ = position;
  }

  [[noreturn]] void fail_truncated() const;
  [[noreturn]] void fail_damaged(const std::string& reason) const;

 private:
  std::span<const uint8_t> bytes_;
  const char* format_;
  size_t position_ = 0;
};

}  // namespace contrastive::image::detail
