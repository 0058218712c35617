#include "jpeg_huffman.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

namespace contrastive::image::detail {
namespace {

constexpr uint8_t kMarker = 0xFF;
constexpr uint8_t kFirstRestart = 0xD0;
/// Of a code (16) and its value (15), rounded up; a refill leaves more.
constexpr int kEnoughBits = 32;
/// More than the longest MCU has, so that the end is looked for once an MCU only.
constexpr int64_t kPadding = 4096;
/// Steps out of the block that tell its regular end from others.
constexpr int kEndOfBlock = 128;
constexpr int kNoCode = 64;

/// Where the coefficients stand in a block by their order in the file.
constexpr std::array<uint8_t, DCTSIZE2> kZigzag{0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,
                                                12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
                                                35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
                                                58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

static_assert(D_MAX_BLOCKS_IN_MCU * DCTSIZE2 * kEnoughBits / 8 + 8 <= kPadding);

uint64_t load_big_endian(const uint8_t* bytes) {
  uint64_t value = 0;
  std::memcpy(&value, bytes, sizeof(value));
  return std::endian::native == std::endian::little ? __builtin_bswap64(value) : value;
}

/// A value of `size` bits as the format writes it: negative ones with their top bit clear.
int32_t signed_value(uint32_t bits, int size) {
  const auto value = static_cast<int32_t>(bits);
  return size > 0 && value < (1 << (size - 1)) ? value - (1 << size) + 1 : value;
}

/// An Entry of JpegHuffman.
constexpr uint32_t packed(int bits, int skip, int value) {
  return static_cast<uint32_t>(bits) | static_cast<uint32_t>(skip) << 8 | static_cast<uint32_t>(value) << 16;
}
constexpr int bits_of(uint32_t entry) {
  return static_cast<int>(entry & 255);
}
constexpr int skip_of(uint32_t entry) {
  return static_cast<int>(entry >> 8 & 255);
}
constexpr int16_t value_of(uint32_t entry) {
  return static_cast<int16_t>(entry >> 16);
}

bool same_table(const JHUFF_TBL& a, const JHUFF_TBL& b) {
  return std::memcmp(a.bits, b.bits, sizeof(a.bits)) == 0 && std::memcmp(a.huffval, b.huffval, sizeof(a.huffval)) == 0;
}

}  // namespace

inline void JpegHuffman::BitReader::refill() {
  bits |= load_big_endian(at) >> count;
  at += (63 - count) >> 3;
  count |= 56;
}

inline void JpegHuffman::BitReader::drop(int n) {
  bits <<= n;
  count -= n;
}

bool JpegHuffman::handles(jpeg_decompress_struct& decoder) {
  const bool is_sequential = !decoder.progressive_mode && !decoder.arith_code && !jpeg_has_multiple_scans(&decoder) &&
                             decoder.data_precision == 8 && decoder.Ss == 0 && decoder.Se == DCTSIZE2 - 1;
  if (!is_sequential) return false;
  const auto is_there = [](int number, JHUFF_TBL* const* tables) {
    return number >= 0 && number < NUM_HUFF_TBLS && tables[number] != nullptr;
  };
  for (int i = 0; i < decoder.comps_in_scan; ++i) {
    const auto& component = *decoder.cur_comp_info[i];
    if (!is_there(component.dc_tbl_no, decoder.dc_huff_tbl_ptrs)) return false;
    if (!is_there(component.ac_tbl_no, decoder.ac_huff_tbl_ptrs)) return false;
  }
  return true;
}

/// `rest`: the bits after the code, from the left. A code and a value of more than `max_bits` stay apart.
JpegHuffman::Entry JpegHuffman::entry_of(int symbol, int code_bits, uint32_t rest, bool is_dc, int max_bits) {
  const int size = symbol & 15;
  const int run = is_dc ? 0 : symbol >> 4;
  if (!is_dc && size == 0 && run != 15) return packed(code_bits, kEndOfBlock, 0);
  if (code_bits + size > max_bits) return packed(0, 0, code_bits << 8 | symbol);
  const auto value = signed_value(size == 0 ? 0 : rest >> (32 - size), size);
  return packed(code_bits + size, run, value);
}

/// libjpeg has checked the counts of the codes before.
void JpegHuffman::build(const JHUFF_TBL& source, bool is_dc, Table& table) {
  table.source = source;
  table.is_dc = is_dc;
  table.valid = true;
  table.entries.fill(0);
  int32_t code = 0, symbol = 0;
  for (int length = 1; length <= kMaxCodeBits; ++length, code <<= 1) {
    table.first_code[static_cast<size_t>(length)] = code;
    table.first_symbol[static_cast<size_t>(length)] = symbol;
    for (int i = 0; i < source.bits[length]; ++i, ++code, ++symbol) {
      if (length > kLookupBits) continue;
      const int free_bits = kLookupBits - length;
      for (int rest = 0; rest < 1 << free_bits; ++rest) {
        const auto left = free_bits == 0 ? 0 : static_cast<uint32_t>(rest) << (32 - free_bits);
        const auto index = static_cast<size_t>(code << free_bits | rest) % table.entries.size();
        table.entries[index] = entry_of(source.huffval[symbol & 255], length, left, is_dc, kLookupBits);
      }
    }
  }
}

const JpegHuffman::Table& JpegHuffman::table_of(const JHUFF_TBL& source, bool is_dc, int number) {
  auto& table = tables_[static_cast<size_t>(2 * number + (is_dc ? 1 : 0))];
  if (!table.valid || !same_table(table.source, source)) build(source, is_dc, table);
  return table;
}

void JpegHuffman::begin(const jpeg_decompress_struct& decoder) {
  num_blocks_ = decoder.blocks_in_MCU;
  for (int i = 0; i < num_blocks_; ++i) {
    const int component = decoder.MCU_membership[i];
    const auto& info = *decoder.cur_comp_info[component];
    blocks_[static_cast<size_t>(i)] = {&table_of(*decoder.dc_huff_tbl_ptrs[info.dc_tbl_no], true, info.dc_tbl_no),
                                       &table_of(*decoder.ac_huff_tbl_ptrs[info.ac_tbl_no], false, info.ac_tbl_no),
                                       component};
  }
  source_ = decoder.src->next_input_byte;
  source_end_ = source_ + decoder.src->bytes_in_buffer;
  restart_interval_ = decoder.restart_interval;
  mcus_to_restart_ = restart_interval_;
  next_restart_ = 0;
  segment_ = memory_.bytes(decoder.src->bytes_in_buffer + kPadding);
  next_segment();
}

/// Copies the data up to the next marker or the end of the file without the zeros after 0xFF bytes.
bool JpegHuffman::next_segment() {
  last_dc_.fill(0);
  uint8_t* out = segment_;
  while (source_ < source_end_) {
    const auto left = static_cast<size_t>(source_end_ - source_);
    const auto* stop = static_cast<const uint8_t*>(std::memchr(source_, kMarker, left));
    const auto plain = stop == nullptr ? left : static_cast<size_t>(stop - source_);
    std::memcpy(out, source_, plain);
    out += plain;
    source_ += plain;
    if (source_end_ - source_ < 2 || source_[1] != 0) break;
    *out++ = kMarker;
    source_ += 2;
  }
  segment_bytes_ = out - segment_;
  std::memset(out, 0, kPadding);
  reader_ = {segment_, 0, 0};
  return segment_bytes_ > 0;
}

/// The segment has to end here, and its restart marker to follow at once.
bool JpegHuffman::restart() {
  const int64_t used = reader_.at - segment_ - reader_.count / 8;
  const bool in_place = source_end_ - source_ >= 2 && source_[1] == kFirstRestart + next_restart_;
  if (used != segment_bytes_ || !in_place) return false;
  source_ += 2;
  next_restart_ = (next_restart_ + 1) % 8;
  mcus_to_restart_ = restart_interval_;
  return next_segment();
}

/// A code longer than the lookup, or one whose value is. `bits`: from the left, enough of them. Without such a code:
/// no bits, and a step out of the block.
JpegHuffman::Entry JpegHuffman::decode_long(const Table& table, Entry entry, uint64_t bits) {
  int length = value_of(entry) >> 8;
  int symbol = value_of(entry) & 255;
  if (length == 0) {
    const auto peeked = static_cast<int32_t>(bits >> (64 - kMaxCodeBits));
    int32_t offset = 0;
    for (length = kLookupBits + 1;; ++length) {
      if (length > kMaxCodeBits) return packed(0, kNoCode, 0);
      offset = (peeked >> (kMaxCodeBits - length)) - table.first_code[static_cast<size_t>(length)];
      if (offset >= 0 && offset < table.source.bits[length]) break;
    }
    symbol = table.source.huffval[(table.first_symbol[static_cast<size_t>(length)] + offset) & 255];
  }
  return entry_of(symbol, length, static_cast<uint32_t>(bits << length >> 32), table.is_dc, kEnoughBits);
}

inline bool JpegHuffman::decode_block(const Block& block, BitReader& state, JCOEF* out) {
  // By value, so that everything stays in registers.
  BitReader reader = state;
  const auto next = [&reader](const Table& table) __attribute__((always_inline)) {
    reader.refill();
    Entry entry = table.entries[reader.bits >> (64 - kLookupBits)];
    if (bits_of(entry) == 0) [[unlikely]]
      entry = decode_long(table, entry, reader.bits);
    reader.drop(bits_of(entry));
    return entry;
  };
  const Entry first = next(*block.dc);
  auto& dc = last_dc_[static_cast<size_t>(block.component)];
  dc += value_of(first);
  bool good = bits_of(first) > 0 && dc >= std::numeric_limits<JCOEF>::min() && dc <= std::numeric_limits<JCOEF>::max();
  out[0] = static_cast<JCOEF>(dc);
  const Table& table = *block.ac;
  for (int k = 1; k < DCTSIZE2; ++k) {
    const Entry entry = next(table);
    k += skip_of(entry);
    if (k >= DCTSIZE2) {
      good = good && k >= kEndOfBlock;
      break;
    }
    out[kZigzag[static_cast<size_t>(k)]] = value_of(entry);
  }
  state = reader;
  return good;
}

bool JpegHuffman::decode_mcu(JBLOCKROW* blocks) {
  if (restart_interval_ > 0) {
    if (mcus_to_restart_ == 0 && !restart()) return false;
    --mcus_to_restart_;
  }
  BitReader reader = reader_;
  for (int i = 0; i < num_blocks_; ++i) {
    JCOEF* out = blocks == nullptr ? unused_ : *blocks[i];
    if (!decode_block(blocks_[static_cast<size_t>(i)], reader, out)) return false;
  }
  reader_ = reader;
  return (reader.at - segment_) * 8 - reader.count <= segment_bytes_ * 8;
}

}  // namespace contrastive::image::detail
