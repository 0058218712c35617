#pragma once

#include <array>
#include <cstdint>
#include <cstdio>

#include <jpeglib.h>

#include "resample.h"

namespace contrastive::image::detail {

/// Decodes the Huffman codes of a sequential JPEG of one scan, faster than libjpeg does: a code and the value behind it
/// are looked up together, and the bytes are freed of their stuffing beforehand. It knows well-formed data alone. On
/// anything else (a code that doesn't exist, an early end, a marker out of place) it gives up, and the image has to be
/// decoded anew by libjpeg, whose bytes, errors and tolerance then count. Large; meant to be kept between images, since
/// most share their tables.
class JpegHuffman {
 public:
  /// Whether `decoder`, whose header is read, has data of this kind.
  static bool handles(jpeg_decompress_struct& decoder);

  /// Starts at the source's position, after jpeg_start_decompress.
  void begin(const jpeg_decompress_struct& decoder);

  /// Decodes the next MCU. `blocks`: its blocks in their order, zeroed; null to pass over it. Returns: false to give
  /// up.
  bool decode_mcu(JBLOCKROW* blocks);

 private:
  static constexpr int kLookupBits = 11;
  static constexpr int kMaxCodeBits = 16;

  /// What the next kLookupBits bits mean, in one word, from its low end: 8 bits: how many a code and its value have, 8
  /// bits: zeros before the value, 16 bits: the value. Where code and value don't fit the first 8 are 0, and the value
  /// is the symbol and (256 x) the bits of its code; these are 0 if not even the code fits, or there is none.
  using Entry = uint32_t;

  struct Table {
    JHUFF_TBL source{};
    bool valid = false;
    bool is_dc = false;
    alignas(64) std::array<Entry, 1 << kLookupBits> entries{};
    std::array<int32_t, kMaxCodeBits + 1> first_code{};    // by length
    std::array<int32_t, kMaxCodeBits + 1> first_symbol{};  // index into huffval
  };

  /// Bits from the left of `bits`, `count` of which are good.
  struct BitReader {
    const uint8_t* at;
    uint64_t bits;
    int count;

    void refill();
    void drop(int n);
  };

  struct Block {
    const Table* dc;
    const Table* ac;
    int component;
  };

  static void build(const JHUFF_TBL& source, bool is_dc, Table& table);
  static Entry entry_of(int symbol, int code_bits, uint32_t rest, bool is_dc, int max_bits);
  static Entry decode_long(const Table& table, Entry entry, uint64_t bits);
  bool decode_block(const Block& block, BitReader& state, JCOEF* out);
  const Table& table_of(const JHUFF_TBL& source, bool is_dc, int number);
  bool next_segment();
  bool restart();

  std::array<Table, 2 * NUM_HUFF_TBLS> tables_{};
  std::array<Block, D_MAX_BLOCKS_IN_MCU> blocks_{};
  int num_blocks_ = 0;
  std::array<int32_t, MAX_COMPS_IN_SCAN> last_dc_{};
  JBLOCK unused_{};

  const uint8_t* source_ = nullptr;  // after the segment that is being decoded
  const uint8_t* source_end_ = nullptr;
  ScratchBuffer memory_;
  uint8_t* segment_ = nullptr;  // without stuffing, up to a marker or the end
  int64_t segment_bytes_ = 0;
  BitReader reader_{};
  uint32_t restart_interval_ = 0;
  uint32_t mcus_to_restart_ = 0;
  int next_restart_ = 0;
};

}  // namespace contrastive::image::detail
