#include <algorithm>
#include <array>
#include <cstring>

#include "resample_kernels.h"

#if defined(__x86_64__) && !defined(CONTRASTIVE_PORTABLE_KERNELS)

#include <immintrin.h>

// A weight is 2^11 * high + low, both int16: one instruction multiplies pairs of int16 and adds the products.

namespace contrastive::image::detail {
namespace {

constexpr int kLowBits = 11;
constexpr int kTapsPerGroup = 4;
constexpr int kRowsAtOnce = 4;
constexpr int64_t kBlockBytes = 32;

int16_t high_part(int32_t weight) {
  return static_cast<int16_t>(weight >> kLowBits);
}
int16_t low_part(int32_t weight) {
  return static_cast<int16_t>(weight & ((1 << kLowBits) - 1));
}

int32_t pair_of(int16_t first, int16_t second) {
  return static_cast<int32_t>(uint32_t{static_cast<uint16_t>(second)} << 16 | static_cast<uint16_t>(first));
}

int64_t groups_of(const Taps& taps) {
  return (taps.max_taps + kTapsPerGroup - 1) / kTapsPerGroup;
}

/// Per output and group of 4 taps: 4 high parts, 4 low parts.
void group_weights(const Taps& taps, std::vector<int16_t>& grouped) {
  const auto groups = groups_of(taps);
  grouped.assign(static_cast<size_t>(taps.outputs() * groups * 2 * kTapsPerGroup), 0);
  for (int64_t i = 0; i < taps.outputs(); ++i) {
    int16_t* out = grouped.data() + i * groups * 2 * kTapsPerGroup;
    for (int64_t k = 0; k < taps.max_taps; ++k) {
      int16_t* group = out + k / kTapsPerGroup * 2 * kTapsPerGroup + k % kTapsPerGroup;
      group[0] = high_part(taps.row(i)[k]);
      group[kTapsPerGroup] = low_part(taps.row(i)[k]);
    }
  }
}

struct RowSet {
  std::array<const uint8_t*, kRowsAtOnce> in;
  std::array<uint8_t*, kRowsAtOnce> out;
};

[[gnu::target("avx2")]] inline __m128i load16(const void* bytes) {
  return _mm_loadu_si128(static_cast<const __m128i*>(bytes));
}

[[gnu::target("avx2")]] inline __m256i load32(const void* bytes) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(bytes));
}

/// Four rows at once; writes one byte past each output row when there are three channels.
template <int kChannels>
[[gnu::target("avx2")]] void narrow_rows(const RowSet& rows, const Taps& taps, const int16_t* grouped) {
  constexpr char o = -1;  // a zero byte
  // The low half takes taps 0 and 1 of each channel as pairs of 16 bits, the high half taps 2 and 3.
  const __m256i pairs = kChannels == 3 ? _mm256_setr_epi8(0, o, 3, o, 1, o, 4, o, 2, o, 5, o, o, o, o, o,  //
                                                          6, o, 9, o, 7, o, 10, o, 8, o, 11, o, o, o, o, o)
                                       : _mm256_setr_epi8(0, o, 4, o, 1, o, 5, o, 2, o, 6, o, 3, o, 7, o,  //
                                                          8, o, 12, o, 9, o, 13, o, 10, o, 14, o, 11, o, 15, o);
  const __m256i high_weights = _mm256_setr_epi8(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3,  //
                                                4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7);
  const __m256i low_weights = _mm256_add_epi8(high_weights, _mm256_set1_epi8(8));
  const __m256i rounding = _mm256_setr_epi32(kHalf, kHalf, kHalf, kHalf, 0, 0, 0, 0);
  const auto groups = groups_of(taps);
  for (int64_t x = 0; x < taps.outputs(); ++x) {
    const int64_t offset = int64_t{taps.spans[static_cast<size_t>(x)].first} * kChannels;
    __m256i high[kRowsAtOnce];
    __m256i low[kRowsAtOnce];
#pragma GCC unroll 4
    for (int r = 0; r < kRowsAtOnce; ++r) {
      high[r] = _mm256_setzero_si256();
      low[r] = rounding;
    }
    for (int64_t g = 0; g < groups; ++g, grouped += 2 * kTapsPerGroup) {
      const __m256i weights = _mm256_broadcastsi128_si256(load16(grouped));
      const __m256i weights_high = _mm256_shuffle_epi8(weights, high_weights);
      const __m256i weights_low = _mm256_shuffle_epi8(weights, low_weights);
      const int64_t from = offset + g * kTapsPerGroup * kChannels;
#pragma GCC unroll 4
      for (int r = 0; r < kRowsAtOnce; ++r) {
        const __m256i values = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load16(rows.in[r] + from)), pairs);
        high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(values, weights_high));
        low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(values, weights_low));
      }
    }
    __m256i sums[2];
#pragma GCC unroll 2
    for (int r = 0; r < 2; ++r) {
      const __m256i a = _mm256_add_epi32(_mm256_slli_epi32(high[r], kLowBits), low[r]);
      const __m256i b = _mm256_add_epi32(_mm256_slli_epi32(high[r + 2], kLowBits), low[r + 2]);
      const __m256i sum =
          _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
      sums[r] = _mm256_srai_epi32(sum, kWeightBits);
    }
    const __m256i words = _mm256_packs_epi32(sums[0], sums[1]);  // rows 0 and 1, rows 2 and 3
    const __m256i bytes = _mm256_packus_epi16(words, words);
    alignas(32) uint8_t packed[32];
    _mm256_store_si256(reinterpret_cast<__m256i*>(packed), bytes);
#pragma GCC unroll 4
    for (int r = 0; r < kRowsAtOnce; ++r) {
      std::memcpy(rows.out[r] + x * kChannels, packed + r / 2 * 16 + r % 2 * 4, 4);
    }
  }
}

[[gnu::target("avx2")]] void weigh_blocks(const VerticalRow& row, int64_t end) {
  const __m256i zero = _mm256_setzero_si256();
  for (int64_t x = 0; x < end; x += kBlockBytes) {
    __m256i high[4] = {zero, zero, zero, zero};
    __m256i low[4] = {zero, zero, zero, zero};
    for (int32_t k = 0; k < row.count; k += 2) {
      const bool pair = k + 1 < row.count;
      const uint8_t* in = row.in + k * row.in_stride + x;
      const __m256i a = load32(in);
      const __m256i b = load32(pair ? in + row.in_stride : in);
      const int32_t second = pair ? row.weights[k + 1] : 0;
      const __m256i weights_high = _mm256_set1_epi32(pair_of(high_part(row.weights[k]), high_part(second)));
      const __m256i weights_low = _mm256_set1_epi32(pair_of(low_part(row.weights[k]), low_part(second)));
      const __m256i first_half = _mm256_unpacklo_epi8(a, b);
      const __m256i second_half = _mm256_unpackhi_epi8(a, b);
      const __m256i values[4] = {_mm256_unpacklo_epi8(first_half, zero), _mm256_unpackhi_epi8(first_half, zero),
                                 _mm256_unpacklo_epi8(second_half, zero), _mm256_unpackhi_epi8(second_half, zero)};
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(values[i], weights_high));
        low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(values[i], weights_low));
      }
    }
    __m256i sums[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256i both = _mm256_add_epi32(_mm256_slli_epi32(high[i], kLowBits), low[i]);
      sums[i] = _mm256_srai_epi32(_mm256_add_epi32(both, _mm256_set1_epi32(kHalf)), kWeightBits);
    }
    const __m256i bytes =
        _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]), _mm256_packs_epi32(sums[2], sums[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(row.out + x), bytes);
  }
}

}  // namespace

bool has_avx2() {
  static const bool supported = __builtin_cpu_supports("avx2") != 0;
  return supported;
}

bool horizontal_avx2(const HorizontalPass& pass) {
  if (pass.channels != 3 && pass.channels != 4) return false;
  const auto& taps = *pass.taps;
  thread_local std::vector<int16_t> grouped;
  group_weights(taps, grouped);
  const auto needed = (taps.spans.back().first + groups_of(taps) * kTapsPerGroup) * pass.channels + 16;
  ReadableRows readable(pass, needed, kRowsAtOnce);
  for (int64_t y = 0; y < pass.rows.count; y += kRowsAtOnce) {
    RowSet set;
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const auto row = std::min<int64_t>(y + r, pass.rows.count - 1);
      set.in[static_cast<size_t>(r)] = readable.row(row, r);
      set.out[static_cast<size_t>(r)] = pass.out + row * pass.out_stride;
    }
    pass.channels == 3 ? narrow_rows<3>(set, taps, grouped.data()) : narrow_rows<4>(set, taps, grouped.data());
  }
  return true;
}

void vertical_avx2(const VerticalRow& row) {
  const auto end = row.row_bytes / kBlockBytes * kBlockBytes;
  weigh_blocks(row, end);
  vertical_portable(row, end);
}

}  // namespace contrastive::image::detail

#else

namespace contrastive::image::detail {

bool has_avx2() {
  return false;
}
bool horizontal_avx2(const HorizontalPass&) {
  return false;
}
void vertical_avx2(const VerticalRow& row) {
  vertical_portable(row);
}

}  // namespace contrastive::image::detail

#endif
