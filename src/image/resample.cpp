#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "contrastive/core/error.h"

#include "resample_kernels.h"

// The weights are computed in doubles and in PIL's order: compile without contraction to fused operations.

namespace contrastive::image::detail {
namespace {

constexpr int64_t kRowAlignment = 64;
constexpr size_t kLargestKept = size_t{64} << 20;

double bilinear_weight(double x) {
  x = std::abs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

double bicubic_weight(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

struct Filter {
  double (*weight)(double);
  double support;
};

Filter filter_of(Interpolation interpolation) {
  CONTRASTIVE_INTERNAL_ASSERT(interpolation != Interpolation::nearest);
  if (interpolation == Interpolation::bilinear) return {bilinear_weight, 1.0};
  return {bicubic_weight, 2.0};
}

/// One axis of the resampling: outputs [begin, begin + count) of out_size, which stand for `extent` inputs from `start`
/// on.
struct Axis {
  Axis(int64_t in, int64_t out, int64_t first, int64_t outputs)
      : Axis(in, out, first, outputs, 0.0, static_cast<double>(in)) {}
  Axis(int64_t in, int64_t out, int64_t first, int64_t outputs, double from, double length)
      : in_size(in), out_size(out), begin(first), count(outputs), start(from), extent(length) {}

  int64_t in_size;
  int64_t out_size;
  int64_t begin;
  int64_t count;
  double start;
  double extent;

  double scale() const { return extent / static_cast<double>(out_size); }
  double filter_scale() const { return std::max(scale(), 1.0); }
  double center(int64_t i) const { return start + (static_cast<double>(begin + i) + 0.5) * scale(); }
  /// Whether the outputs are the inputs.
  bool copies() const { return in_size == out_size && start == 0.0 && extent == static_cast<double>(in_size); }
};

Span span_of(const Axis& axis, const Filter& filter, int64_t i) {
  const double support = filter.support * axis.filter_scale();
  const auto first = std::max<int64_t>(static_cast<int64_t>(axis.center(i) - support + 0.5), 0);
  const auto end = std::min<int64_t>(static_cast<int64_t>(axis.center(i) + support + 0.5), axis.in_size);
  return {static_cast<int32_t>(first), static_cast<int32_t>(end - first)};
}

/// The normalised weights of output `i`, in PIL's order of operations.
void compute_weights(const Axis& axis, const Filter& filter, int64_t i, Span span, std::vector<double>& weights) {
  const double center = axis.center(i);
  const double inverse_scale = 1.0 / axis.filter_scale();
  double sum = 0.0;
  weights.resize(static_cast<size_t>(span.count));
  for (int32_t k = 0; k < span.count; ++k) {
    auto& weight = weights[static_cast<size_t>(k)];
    weight = filter.weight((k + span.first - center + 0.5) * inverse_scale);
    sum += weight;
  }
  if (sum == 0.0) return;
  for (auto& weight : weights) weight /= sum;
}

int32_t to_fixed_point(double weight) {
  return static_cast<int32_t>((weight < 0 ? -0.5 : 0.5) + weight * (1 << kWeightBits));
}

void compute_taps(const Axis& axis, const Filter& filter, Taps& taps) {
  taps.max_taps = 0;
  taps.spans.resize(static_cast<size_t>(axis.count));
  for (int64_t i = 0; i < axis.count; ++i) {
    const auto span = span_of(axis, filter, i);
    taps.spans[static_cast<size_t>(i)] = span;
    taps.max_taps = std::max<int64_t>(taps.max_taps, span.count);
  }
  taps.weights.assign(static_cast<size_t>(axis.count * taps.max_taps), 0);
  thread_local std::vector<double> exact;
  for (int64_t i = 0; i < axis.count; ++i) {
    compute_weights(axis, filter, i, taps.spans[static_cast<size_t>(i)], exact);
    std::transform(exact.begin(), exact.end(), taps.weights.begin() + i * taps.max_taps, to_fixed_point);
  }
}

void run_horizontal(const HorizontalPass& pass) {
  if (has_avx512() && horizontal_avx512(pass)) return;
  if (has_avx2() && horizontal_avx2(pass)) return;
  horizontal_portable(pass);
}

void run_vertical(const VerticalRow& row) {
  if (has_avx512()) return vertical_avx512(row);
  if (has_avx2()) return vertical_avx2(row);
  vertical_portable(row);
}

/// Rows of one image in scratch memory, padded for the kernels.
struct PaddedRows {
  uint8_t* pixels;
  int64_t stride;
};

PaddedRows padded_rows(ScratchBuffer& memory, int64_t rows, int64_t row_bytes) {
  const auto stride = (row_bytes + kRowPadding + kRowAlignment - 1) / kRowAlignment * kRowAlignment;
  return {memory.bytes(static_cast<size_t>(rows * stride)), stride};
}

/// The horizontal pass, or a copy where the width stays: PIL skips the pass then, and its weights would be 1 and 0.
void narrow(const PixelView& source, int channels, Span rows, const Axis& columns, const Filter& filter,
            const PaddedRows& out) {
  if (!columns.copies()) {
    thread_local Taps taps;
    compute_taps(columns, filter, taps);
    return run_horizontal({source, channels, rows, &taps, out.pixels, out.stride});
  }
  for (int64_t y = 0; y < rows.count; ++y) {
    const uint8_t* in = source.pixels + (rows.first + y) * source.stride + columns.begin * channels;
    std::memcpy(out.pixels + y * out.stride, in, static_cast<size_t>(columns.count * channels));
  }
}

/// The vertical pass or a copy. `in` starts at row `first_row` of the source.
void shorten(const uint8_t* in, int64_t in_stride, int64_t row_bytes, int32_t first_row, const Axis& rows,
             const Taps& taps, const PaddedRows& out) {
  for (int64_t y = 0; y < rows.count; ++y) {
    const auto span = taps.spans[static_cast<size_t>(y)];
    uint8_t* out_row = out.pixels + y * out.stride;
    if (rows.copies()) {
      std::memcpy(out_row, in + (rows.begin + y - first_row) * in_stride, static_cast<size_t>(row_bytes));
    } else {
      run_vertical({in + (span.first - first_row) * in_stride, in_stride, row_bytes, span.count, taps.row(y), out_row});
    }
  }
}

/// Pillow 13 narrows last when the height loses more than twice what the width does.
bool vertical_goes_first(const Axis& columns, const Axis& rows) {
  const auto lost_rows = rows.in_size - rows.out_size;
  return lost_rows > 0 && lost_rows > 2 * (columns.in_size - columns.out_size);
}

/// What one thread keeps between calls.
struct Scratch {
  Taps vertical;
  ScratchBuffer between;
  ScratchBuffer narrowed;
};

Scratch& scratch() {
  thread_local Scratch instance;
  return instance;
}

void resample_horizontal_first(const PixelView& source, int channels, const Axis& columns, const Axis& rows,
                               const Filter& filter, uint8_t* out) {
  auto& memory = scratch();
  compute_taps(rows, filter, memory.vertical);
  const auto& first = memory.vertical.spans.front();
  const auto& last = memory.vertical.spans.back();
  const Span needed{first.first, last.first + last.count - first.first};
  const auto row_bytes = columns.count * channels;
  const auto between = padded_rows(memory.between, needed.count, row_bytes);
  narrow(source, channels, needed, columns, filter, between);
  shorten(between.pixels, between.stride, row_bytes, needed.first, rows, memory.vertical, {out, row_bytes});
}

void resample_vertical_first(const PixelView& source, int channels, const Axis& columns, const Axis& rows,
                             const Filter& filter, uint8_t* out) {
  auto& memory = scratch();
  compute_taps(rows, filter, memory.vertical);
  const auto between = padded_rows(memory.between, rows.count, source.width * channels);
  shorten(source.pixels, source.stride, source.width * channels, 0, rows, memory.vertical, between);

  const auto row_bytes = columns.count * channels;
  const auto narrowed = padded_rows(memory.narrowed, rows.count, row_bytes);
  const PixelView shortened{between.pixels, between.stride, source.width, rows.count,
                            between.pixels + rows.count * between.stride};
  narrow(shortened, channels, {0, static_cast<int32_t>(rows.count)}, columns, filter, narrowed);
  for (int64_t y = 0; y < rows.count; ++y) {
    std::memcpy(out + y * row_bytes, narrowed.pixels + y * narrowed.stride, static_cast<size_t>(row_bytes));
  }
}

void resample_axes(const PixelView& source, int channels, const Axis& columns, const Axis& rows, const Filter& filter,
                   uint8_t* out) {
  if (vertical_goes_first(columns, rows)) return resample_vertical_first(source, channels, columns, rows, filter, out);
  resample_horizontal_first(source, channels, columns, rows, filter, out);
}

uint16_t load_grey16(const uint8_t* in) {
  uint16_t value = 0;
  std::memcpy(&value, in, sizeof(value));
  return value;
}

uint16_t clip_grey16(double sum) {
  return static_cast<uint16_t>(std::clamp(std::floor(sum + 0.5), 0.0, 65535.0));
}

/// One axis in double: out[i * out_step] from in[j * in_step], `lines` times.
struct Grey16Pass {
  const uint8_t* in;
  int64_t in_step;
  int64_t in_line;
  uint8_t* out;
  int64_t out_step;
  int64_t out_line;
  int64_t lines;
};

void run_grey16_pass(const Grey16Pass& pass, const Axis& axis, const Filter& filter) {
  std::vector<double> weights;
  for (int64_t i = 0; i < axis.count; ++i) {
    const auto span = span_of(axis, filter, i);
    compute_weights(axis, filter, i, span, weights);
    for (int64_t line = 0; line < pass.lines; ++line) {
      const uint8_t* in = pass.in + line * pass.in_line + span.first * pass.in_step;
      double sum = 0.0;
      for (const double weight : weights) {
        sum += load_grey16(in) * weight;
        in += pass.in_step;
      }
      const auto value = clip_grey16(sum);
      std::memcpy(pass.out + line * pass.out_line + i * pass.out_step, &value, sizeof(value));
    }
  }
}

}  // namespace

uint8_t* ScratchBuffer::bytes(size_t size) {
  if (size > capacity_ || (capacity_ > kLargestKept && size <= kLargestKept)) {
    data_.reset();
    capacity_ = 0;
    data_ = std::make_unique_for_overwrite<uint8_t[]>(size);
    capacity_ = size;
  }
  return data_.get();
}

PixelView view_of(const Image& image, const Box& box) {
  const auto step = bytes_per_pixel(image.mode);
  return {image.row(box.top) + box.left * step, image.width * step, box.width, box.height,
          image.pixels.data() + image.pixels.size()};
}

void resample_box(const PixelView& source, int channels, const SourceBox& box, int64_t width, int64_t height,
                  Interpolation interpolation, uint8_t* out) {
  const Axis columns(source.width, width, 0, width, box.left, box.width);
  const Axis rows(source.height, height, 0, height, box.top, box.height);
  resample_axes(source, channels, columns, rows, filter_of(interpolation), out);
}

void resample(const PixelView& source, int channels, int64_t width, int64_t height, const Box& part,
              Interpolation interpolation, uint8_t* out) {
  const Axis columns{source.width, width, part.left, part.width};
  const Axis rows{source.height, height, part.top, part.height};
  resample_axes(source, channels, columns, rows, filter_of(interpolation), out);
}

void resample_grey16(const PixelView& source, int64_t width, int64_t height, const Box& part,
                     Interpolation interpolation, uint8_t* out) {
  const auto filter = filter_of(interpolation);
  const Axis columns{source.width, width, part.left, part.width};
  const Axis rows{source.height, height, part.top, part.height};
  const auto row_bytes = part.width * 2;
  if (vertical_goes_first(columns, rows)) {
    std::vector<uint8_t> shortened(static_cast<size_t>(source.width * part.height * 2));
    const auto stride = source.width * 2;
    run_grey16_pass({source.pixels, source.stride, 2, shortened.data(), stride, 2, source.width}, rows, filter);
    run_grey16_pass({shortened.data(), 2, stride, out, 2, row_bytes, part.height}, columns, filter);
    return;
  }
  std::vector<uint8_t> narrowed(static_cast<size_t>(source.height * row_bytes));
  run_grey16_pass({source.pixels, 2, source.stride, narrowed.data(), 2, row_bytes, source.height}, columns, filter);
  run_grey16_pass({narrowed.data(), row_bytes, 2, out, row_bytes, 2, part.width}, rows, filter);
}

}  // namespace contrastive::image::detail
