#pragma once

#include <cstddef>
#include <cstdio>
#include <vector>

#include <jpeglib.h>

namespace contrastive::image::detail {

/// Memory for one libjpeg object after the other: what libjpeg asks for between its creation and its destruction comes
/// from blocks that stay, up to a limit, so that decoding takes no fresh pages. (The coefficients of progressive files
/// are left to libjpeg.)
class JpegMemory {
 public:
  JpegMemory() = default;
  ~JpegMemory();
  JpegMemory(const JpegMemory&) = delete;
  JpegMemory& operator=(const JpegMemory&) = delete;

  /// Serves a decoder just created, whose predecessor is destroyed. Its client_data must point to this object.
  void serve(jpeg_decompress_struct& decoder);

  /// Takes back what a destroyed decoder had, and keeps of it what isn't too much.
  void reset();

 private:
  struct Block {
    char* data;
    size_t bytes;
  };

  /// Null if the system has none.
  void* take(size_t bytes);
  static void* take_or_fail(j_common_ptr common, size_t bytes);
  static void* take_block(j_common_ptr common, int pool, size_t bytes);
  static JSAMPARRAY take_rows(j_common_ptr common, int pool, JDIMENSION width, JDIMENSION rows);

  std::vector<Block> blocks_;  // the last one is in use
  size_t used_ = 0;            // of the last block
};

}  // namespace contrastive::image::detail
