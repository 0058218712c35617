#include <algorithm>
#include <array>
#include <cstring>

#include "contrastive/core/error.h"

#include "resample_kernels.h"

namespace contrastive::image::detail {
namespace {

uint8_t to_byte(int32_t sum) {
  return static_cast<uint8_t>(std::clamp(sum >> kWeightBits, 0, 255));
}

template <int kChannels>
void horizontal(const HorizontalPass& pass) {
  const auto& taps = *pass.taps;
  for (int64_t y = 0; y < pass.rows.count; ++y) {
    const uint8_t* in_row = pass.source.pixels + (pass.rows.first + y) * pass.source.stride;
    uint8_t* out = pass.out + y * pass.out_stride;
    for (int64_t x = 0; x < taps.outputs(); ++x) {
      const auto span = taps.spans[static_cast<size_t>(x)];
      const int32_t* weights = taps.row(x);
      const uint8_t* in = in_row + int64_t{span.first} * kChannels;
      std::array<int32_t, kChannels> sums;
      sums.fill(kHalf);
      for (int32_t k = 0; k < span.count; ++k, in += kChannels) {
        for (size_t c = 0; c < kChannels; ++c) sums[c] += in[c] * weights[k];
      }
      out = std::transform(sums.begin(), sums.end(), out, to_byte);
    }
  }
}

}  // namespace

void horizontal_portable(const HorizontalPass& pass) {
  switch (pass.channels) {
    case 1:
      return horizontal<1>(pass);
    case 2:
      return horizontal<2>(pass);
    case 3:
      return horizontal<3>(pass);
    case 4:
      return horizontal<4>(pass);
    default:
      CONTRASTIVE_INTERNAL_ASSERT(false);
  }
}

void vertical_portable(const VerticalRow& row, int64_t begin) {
  constexpr int64_t kAtOnce = 64;
  std::array<int32_t, kAtOnce> sums;
  for (; begin < row.row_bytes; begin += kAtOnce) {
    const auto width = std::min(kAtOnce, row.row_bytes - begin);
    sums.fill(kHalf);
    for (int32_t k = 0; k < row.count; ++k) {
      const uint8_t* in = row.in + k * row.in_stride + begin;
      for (int64_t x = 0; x < width; ++x) sums[static_cast<size_t>(x)] += in[x] * row.weights[k];
    }
    std::transform(sums.begin(), sums.begin() + width, row.out + begin, to_byte);
  }
}

ReadableRows::ReadableRows(const HorizontalPass& pass, int64_t needed, int rows_at_once)
    : pass_(pass), row_bytes_(pass.source.width * pass.channels), needed_(std::max(needed, row_bytes_)) {
  thread_local ScratchBuffer scratch;
  copies_ = scratch.bytes(static_cast<size_t>(needed_ * rows_at_once));
}

const uint8_t* ReadableRows::row(int64_t y, int slot) {
  const uint8_t* row = pass_.source.pixels + (pass_.rows.first + y) * pass_.source.stride;
  if (pass_.source.readable_end - row >= needed_) return row;
  uint8_t* copy = copies_ + slot * needed_;
  std::memcpy(copy, row, static_cast<size_t>(row_bytes_));
  std::memset(copy + row_bytes_, 0, static_cast<size_t>(needed_ - row_bytes_));
  return copy;
}

}  // namespace contrastive::image::detail
