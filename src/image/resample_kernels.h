#pragma once

#include <cstdint>
#include <vector>

#include "resample.h"

// Weights have 22 fractional bits and the sums are exact in int32, so every order of summation gives PIL's bytes; the
// kernels below differ in speed alone.

namespace contrastive::image::detail {

constexpr int kWeightBits = 22;
/// One half, which rounds the sum.
constexpr int32_t kHalf = 1 << (kWeightBits - 1);

/// Bytes that a kernel may write past an output row.
constexpr int64_t kRowPadding = 16;

/// Which inputs make an output along one axis, or which rows a pass covers.
struct Span {
  int32_t first;
  int32_t count;
};

/// The fixed-point weights of one axis.
struct Taps {
  std::vector<Span> spans;       // one for each output
  int64_t max_taps = 0;          // the largest count among them
  std::vector<int32_t> weights;  // [outputs, max_taps], zeros after an output's last tap

  int64_t outputs() const { return static_cast<int64_t>(spans.size()); }
  const int32_t* row(int64_t i) const { return weights.data() + i * max_taps; }
};

/// The horizontal pass of `rows` of the source; row rows.first goes to `out`. Rows of `out` are padded.
struct HorizontalPass {
  PixelView source;
  int channels = 3;
  Span rows{0, 0};
  const Taps* taps = nullptr;
  uint8_t* out = nullptr;
  int64_t out_stride = 0;
};

/// One output row of the vertical pass: `count` rows of `row_bytes` bytes, weighted.
struct VerticalRow {
  const uint8_t* in = nullptr;
  int64_t in_stride = 0;
  int64_t row_bytes = 0;
  int32_t count = 0;
  const int32_t* weights = nullptr;
  uint8_t* out = nullptr;
};

void horizontal_portable(const HorizontalPass& pass);
/// From byte `begin` on.
void vertical_portable(const VerticalRow& row, int64_t begin = 0);

/// Run-time choices of a processor; each kernel returns false if it can't do this pass.
bool has_avx2();
bool horizontal_avx2(const HorizontalPass& pass);
void vertical_avx2(const VerticalRow& row);

bool has_avx512();
bool horizontal_avx512(const HorizontalPass& pass);
void vertical_avx512(const VerticalRow& row);

/// Source rows of a pass, `needed` bytes of each readable: those too near the end of their memory are copied.
class ReadableRows {
 public:
  ReadableRows(const HorizontalPass& pass, int64_t needed, int rows_at_once);

  /// Row `y` of the pass. `slot` in [0, rows_at_once): where a copy lives until the slot is used again.
  const uint8_t* row(int64_t y, int slot);

 private:
  const HorizontalPass& pass_;
  int64_t row_bytes_;
  int64_t needed_;
  uint8_t* copies_;
};

}  // namespace contrastive::image::detail
