#include <algorithm>
#include <array>
#include <cstring>

#include "resample_kernels.h"

#if defined(__x86_64__) && !defined(CONTRASTIVE_PORTABLE_KERNELS)

// GCC 12 takes the undefined values inside its own intrinsics for ours.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <immintrin.h>

// A weight is 2^16 * d2 + 2^8 * d1 + d0 with digits in [-128, 127]: one instruction (VNNI) multiplies four bytes by
// four digits and adds the products.

#define CONTRASTIVE_AVX512 gnu::target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")

namespace contrastive::image::detail {
namespace {

constexpr int kDigits = 3;
constexpr int kTapsPerGroup = 4;
constexpr int kOutputsPerBlock = 4;
constexpr int kRowsAtOnce = 4;
constexpr int64_t kVectorBytes = 64;

int64_t groups_of(const Taps& taps) {
  return (taps.max_taps + kTapsPerGroup - 1) / kTapsPerGroup;
}
int64_t blocks_of(const Taps& taps) {
  return (taps.outputs() + kOutputsPerBlock - 1) / kOutputsPerBlock;
}

std::array<int8_t, kDigits> digits_of(int32_t weight) {
  const auto d0 = static_cast<int8_t>(weight);
  const int32_t rest = (weight - d0) >> 8;
  const auto d1 = static_cast<int8_t>(rest);
  return {d0, d1, static_cast<int8_t>((rest - d1) >> 8)};
}

/// What the horizontal kernel reads, block by block of 4 outputs.
struct Blocks {
  std::vector<int64_t> first;    // [blocks]: the first input pixel
  std::vector<uint8_t> indices;  // [blocks, 64]: which bytes from there make group 0
  std::vector<int8_t> weights;   // [blocks, groups, digits, outputs of the block, taps of the group]
};

/// Places the indices of one block; false if its inputs lie too far apart for one load.
bool fill_indices(const Taps& taps, int channels, int64_t block, Blocks& blocks) {
  const int64_t begin = block * kOutputsPerBlock;
  const int64_t first = taps.spans[static_cast<size_t>(begin)].first;
  blocks.first[static_cast<size_t>(block)] = first;
  uint8_t* out = blocks.indices.data() + block * kVectorBytes;
  for (int64_t i = 0; i < kOutputsPerBlock; ++i) {
    const auto output = std::min(begin + i, taps.outputs() - 1);
    const auto distance = taps.spans[static_cast<size_t>(output)].first - first;
    if ((distance + kTapsPerGroup) * channels > kVectorBytes) return false;
    for (int64_t c = 0; c < 4; ++c) {
      for (int64_t k = 0; k < kTapsPerGroup; ++k) {
        *out++ = static_cast<uint8_t>((distance + k) * channels + std::min<int64_t>(c, channels - 1));
      }
    }
  }
  return true;
}

void fill_weights(const Taps& taps, Blocks& blocks) {
  constexpr int64_t kPerDigit = kOutputsPerBlock * kTapsPerGroup;
  const auto groups = groups_of(taps);
  blocks.weights.assign(static_cast<size_t>(blocks_of(taps) * groups * kDigits * kPerDigit), 0);
  for (int64_t i = 0; i < taps.outputs(); ++i) {
    int8_t* block = blocks.weights.data() + i / kOutputsPerBlock * groups * kDigits * kPerDigit;
    for (int64_t k = 0; k < taps.max_taps; ++k) {
      int8_t* out =
          block + k / kTapsPerGroup * kDigits * kPerDigit + i % kOutputsPerBlock * kTapsPerGroup + k % kTapsPerGroup;
      const auto digits = digits_of(taps.row(i)[k]);
      for (int64_t d = 0; d < kDigits; ++d) out[d * kPerDigit] = digits[static_cast<size_t>(d)];
    }
  }
}

bool fill_blocks(const Taps& taps, int channels, Blocks& blocks) {
  const auto count = blocks_of(taps);
  blocks.first.resize(static_cast<size_t>(count));
  blocks.indices.resize(static_cast<size_t>(count * kVectorBytes));
  for (int64_t block = 0; block < count; ++block) {
    if (!fill_indices(taps, channels, block, blocks)) return false;
  }
  fill_weights(taps, blocks);
  return true;
}

struct RowSet {
  std::array<const uint8_t*, kRowsAtOnce> in;
  std::array<uint8_t*, kRowsAtOnce> out;
};

/// Four rows at once; writes up to 16 bytes past each output row.
template <int kChannels>
[[CONTRASTIVE_AVX512]] void narrow_rows(const RowSet& rows, const Blocks& blocks, int64_t groups) {
  const __m512i spread = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  const __m128i drop_fourth = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
  const int8_t* weights = blocks.weights.data();
  for (size_t block = 0; block < blocks.first.size(); ++block) {
    const __m512i indices = _mm512_loadu_si512(blocks.indices.data() + block * kVectorBytes);
    const int64_t offset = blocks.first[block] * kChannels;
    __m512i sums[kRowsAtOnce][kDigits];
#pragma GCC unroll 4
    for (int r = 0; r < kRowsAtOnce; ++r) {
      sums[r][0] = _mm512_set1_epi32(kHalf);
      sums[r][1] = sums[r][2] = _mm512_setzero_si512();
    }
    for (int64_t g = 0; g < groups; ++g) {
      __m512i digits[kDigits];
#pragma GCC unroll 3
      for (int d = 0; d < kDigits; ++d, weights += 16) {
        const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights));
        digits[d] = _mm512_permutexvar_epi32(spread, _mm512_castsi128_si512(packed));
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRowsAtOnce; ++r) {
        const uint8_t* in = rows.in[static_cast<size_t>(r)] + offset + g * kTapsPerGroup * kChannels;
        const __m512i values = _mm512_permutexvar_epi8(indices, _mm512_loadu_si512(in));
#pragma GCC unroll 3
        for (int d = 0; d < kDigits; ++d) sums[r][d] = _mm512_dpbusd_epi32(sums[r][d], values, digits[d]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const __m512i upper = _mm512_add_epi32(_mm512_slli_epi32(sums[r][2], 8), sums[r][1]);
      const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(upper, 8), sums[r][0]);
      const __m512i values = _mm512_max_epi32(_mm512_srai_epi32(sum, kWeightBits), _mm512_setzero_si512());
      __m128i bytes = _mm512_cvtusepi32_epi8(values);
      if (kChannels == 3) bytes = _mm_shuffle_epi8(bytes, drop_fourth);
      uint8_t* out = rows.out[static_cast<size_t>(r)] + block * kOutputsPerBlock * kChannels;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
    }
  }
}

/// The digits of four taps from `k` on as the bytes of one int32 each.
std::array<int32_t, kDigits> digits_of_group(const VerticalRow& row, int32_t k) {
  std::array<int32_t, kDigits> packed{};
  for (int32_t i = 0; i < kTapsPerGroup && k + i < row.count; ++i) {
    const auto digits = digits_of(row.weights[k + i]);
    for (size_t d = 0; d < kDigits; ++d) {
      packed[d] |= static_cast<int32_t>(uint32_t{static_cast<uint8_t>(digits[d])} << (8 * i));
    }
  }
  return packed;
}

[[CONTRASTIVE_AVX512]] void weigh_rows(const VerticalRow& row,
                                       const std::vector<std::array<int32_t, kDigits>>& groups) {
  for (int64_t x = 0; x < row.row_bytes; x += kVectorBytes) {
    const auto left = std::min(row.row_bytes - x, kVectorBytes);
    const __mmask64 mask = ~uint64_t{0} >> (kVectorBytes - left);
    __m512i sums[4][kDigits];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      sums[i][0] = _mm512_set1_epi32(kHalf);
      sums[i][1] = sums[i][2] = _mm512_setzero_si512();
    }
    for (size_t g = 0; g < groups.size(); ++g) {
      __m512i in[kTapsPerGroup];
#pragma GCC unroll 4
      for (int i = 0; i < kTapsPerGroup; ++i) {
        // Taps past the last have no weight; any row will do.
        const auto tap = std::min<int64_t>(static_cast<int64_t>(g) * kTapsPerGroup + i, row.count - 1);
        in[i] = _mm512_maskz_loadu_epi8(mask, row.in + tap * row.in_stride + x);
      }
      const __m512i even_low = _mm512_unpacklo_epi8(in[0], in[1]);
      const __m512i even_high = _mm512_unpackhi_epi8(in[0], in[1]);
      const __m512i odd_low = _mm512_unpacklo_epi8(in[2], in[3]);
      const __m512i odd_high = _mm512_unpackhi_epi8(in[2], in[3]);
      const __m512i values[4] = {_mm512_unpacklo_epi16(even_low, odd_low), _mm512_unpackhi_epi16(even_low, odd_low),
                                 _mm512_unpacklo_epi16(even_high, odd_high),
                                 _mm512_unpackhi_epi16(even_high, odd_high)};
#pragma GCC unroll 3
      for (int d = 0; d < kDigits; ++d) {
        const __m512i digits = _mm512_set1_epi32(groups[g][static_cast<size_t>(d)]);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) sums[i][d] = _mm512_dpbusd_epi32(sums[i][d], values[i], digits);
      }
    }
    __m512i results[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512i upper = _mm512_add_epi32(_mm512_slli_epi32(sums[i][2], 8), sums[i][1]);
      results[i] = _mm512_srai_epi32(_mm512_add_epi32(_mm512_slli_epi32(upper, 8), sums[i][0]), kWeightBits);
    }
    const __m512i bytes =
        _mm512_packus_epi16(_mm512_packs_epi32(results[0], results[1]), _mm512_packs_epi32(results[2], results[3]));
    _mm512_mask_storeu_epi8(row.out + x, mask, bytes);
  }
}

}  // namespace

bool has_avx512() {
  static const bool supported = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
                                __builtin_cpu_supports("avx512vnni");
  return supported;
}

bool horizontal_avx512(const HorizontalPass& pass) {
  if (pass.channels != 3 && pass.channels != 4) return false;
  const auto& taps = *pass.taps;
  thread_local Blocks blocks;
  if (!fill_blocks(taps, pass.channels, blocks)) return false;
  const auto groups = groups_of(taps);
  const auto needed = (blocks.first.back() + groups * kTapsPerGroup) * pass.channels + kVectorBytes;
  ReadableRows readable(pass, needed, kRowsAtOnce);
  for (int64_t y = 0; y < pass.rows.count; y += kRowsAtOnce) {
    RowSet set;
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const auto row = std::min<int64_t>(y + r, pass.rows.count - 1);
      set.in[static_cast<size_t>(r)] = readable.row(row, r);
      set.out[static_cast<size_t>(r)] = pass.out + row * pass.out_stride;
    }
    pass.channels == 3 ? narrow_rows<3>(set, blocks, groups) : narrow_rows<4>(set, blocks, groups);
  }
  return true;
}

void vertical_avx512(const VerticalRow& row) {
  thread_local std::vector<std::array<int32_t, kDigits>> groups;
  groups.clear();
  for (int32_t k = 0; k < row.count; k += kTapsPerGroup) groups.push_back(digits_of_group(row, k));
  weigh_rows(row, groups);
}

}  // namespace contrastive::image::detail

#else

namespace contrastive::image::detail {

bool has_avx512() {
  return false;
}
bool horizontal_avx512(const HorizontalPass&) {
  return false;
}
void vertical_avx512(const VerticalRow& row) {
  vertical_portable(row);
}

}  // namespace contrastive::image::detail

#endif
