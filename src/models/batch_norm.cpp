#include "models/batch_norm.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include "contrastive/core/vector_clones.h"
#include "contrastive/ops/vector_math.h"

#include "models/no_graph.h"

namespace contrastive::models::detail {
namespace {

// Rows that are summed in working precision before the sums go into double precision.
constexpr int64_t kBlockRows = 64;
// A batch is summed in parts, whose number depends on that of the rows alone: results don't depend on that of threads.
constexpr int64_t kMaxParts = 64;
constexpr int64_t kMinPartRows = 128;

using ops::detail::Compute;
using ops::detail::load;
using ops::detail::store;

/// What follows the normalisation.
enum class Tail {
  kNone,
  kRelu,
  kAddRelu,  ///< a shortcut is added first
};

/// (x - shift) factor + offset. [C] each.
template <typename T>
struct Affine {
  const Compute<T>*shift, *factor, *offset;

  CONTRASTIVE_INLINE Compute<T> operator()(Compute<T> x, int64_t c) const {
    return (x - shift[c]) * factor[c] + offset[c];
  }
};

/// Adds the sums of x - shift, and of its square, over the rows. Shapes: x [rows, C], the others [C].
template <typename T>
CONTRASTIVE_INLINE void add_squares_body(const T* __restrict x, const Compute<T>* __restrict shift, int64_t rows,
                                         int64_t channels, Compute<T>* __restrict sum, Compute<T>* __restrict square) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4, x += 4 * channels) {
    const T *second = x + channels, *third = second + channels, *fourth = third + channels;
    for (int64_t c = 0; c < channels; ++c) {
      const auto v0 = load(x[c]) - shift[c], v1 = load(second[c]) - shift[c];
      const auto v2 = load(third[c]) - shift[c], v3 = load(fourth[c]) - shift[c];
      sum[c] += (v0 + v1) + (v2 + v3);
      square[c] += (v0 * v0 + v1 * v1) + (v2 * v2 + v3 * v3);
    }
  }
  for (; r < rows; ++r, x += channels) {
    for (int64_t c = 0; c < channels; ++c) {
      const auto value = load(x[c]) - shift[c];
      sum[c] += value;
      square[c] += value * value;
    }
  }
}

/// y = tail(affine(x)). Shapes: x, y, shortcut [rows, C].
template <Tail kTail, typename T>
CONTRASTIVE_INLINE void normalize_rows(const T* __restrict x, const Affine<T>& affine, const T* __restrict shortcut,
                                       int64_t rows, int64_t channels, T* __restrict y) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < channels; ++c) {
      auto value = affine(load(x[c]), c);
      if constexpr (kTail == Tail::kAddRelu) value += load(shortcut[c]);
      if constexpr (kTail != Tail::kNone) value = value < 0 ? 0 : value;  // NaN stays
      store(y[c], value);
    }
    x += channels;
    y += channels;
    if constexpr (kTail == Tail::kAddRelu) shortcut += channels;
  }
}

template <typename T>
CONTRASTIVE_INLINE void normalize_body(Tail tail, const T* x, const Affine<T>& affine, const T* shortcut, int64_t rows,
                                       int64_t channels, T* y) {
  if (tail == Tail::kNone) normalize_rows<Tail::kNone>(x, affine, shortcut, rows, channels, y);
  if (tail == Tail::kRelu) normalize_rows<Tail::kRelu>(x, affine, shortcut, rows, channels, y);
  if (tail == Tail::kAddRelu) normalize_rows<Tail::kAddRelu>(x, affine, shortcut, rows, channels, y);
}

/// Adds the sums of g, and of g (x - shift), over the rows, where g is dy as far as the tail lets it through: for kRelu
/// as the sign of affine(x) says, for kAddRelu as that of y does, and then g is written, too.
/// Shapes: x, dy, y, g [rows, C], the others [C].
template <Tail kTail, typename T>
CONTRASTIVE_INLINE void add_products_rows(const T* __restrict x, const T* __restrict dy, const Affine<T>& affine,
                                          const T* __restrict y, int64_t rows, int64_t channels, T* __restrict g,
                                          Compute<T>* __restrict sum, Compute<T>* __restrict product) {
  const auto* __restrict shift = affine.shift;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < channels; ++c) {
      const auto value = load(x[c]);
      auto gradient = load(dy[c]);
      if constexpr (kTail == Tail::kRelu) gradient = affine(value, c) <= 0 ? 0 : gradient;
      if constexpr (kTail == Tail::kAddRelu) {
        gradient = load(y[c]) <= 0 ? 0 : gradient;
        store(g[c], gradient);
      }
      sum[c] += gradient;
      product[c] += gradient * (value - shift[c]);
    }
    x += channels;
    dy += channels;
    if constexpr (kTail == Tail::kAddRelu) {
      y += channels;
      g += channels;
    }
  }
}

template <typename T>
CONTRASTIVE_INLINE void add_products_body(Tail tail, const T* x, const T* dy, const Affine<T>& affine, const T* y,
                                          int64_t rows, int64_t channels, T* g, Compute<T>* sum, Compute<T>* product) {
  if (tail == Tail::kNone) add_products_rows<Tail::kNone>(x, dy, affine, y, rows, channels, g, sum, product);
  if (tail == Tail::kRelu) add_products_rows<Tail::kRelu>(x, dy, affine, y, rows, channels, g, sum, product);
  if (tail == Tail::kAddRelu) add_products_rows<Tail::kAddRelu>(x, dy, affine, y, rows, channels, g, sum, product);
}

/// dx = slope(x) + g scale, with g as above; that of kAddRelu is given as dy. Shapes: x, dy, dx [rows, C], scale [C].
template <bool kHasRelu, typename T>
CONTRASTIVE_INLINE void input_gradient_rows(const T* __restrict x, const T* __restrict dy, const Affine<T>& affine,
                                            const Affine<T>& slope, const Compute<T>* __restrict scale, int64_t rows,
                                            int64_t channels, T* __restrict dx) {
  for (int64_t r = 0; r < rows; ++r, x += channels, dy += channels, dx += channels) {
    for (int64_t c = 0; c < channels; ++c) {
      const auto value = load(x[c]);
      auto gradient = load(dy[c]);
      if constexpr (kHasRelu) gradient = affine(value, c) <= 0 ? 0 : gradient;
      store(dx[c], slope(value, c) + gradient * scale[c]);
    }
  }
}

template <typename T>
CONTRASTIVE_INLINE void input_gradient_body(bool has_relu, const T* x, const T* dy, const Affine<T>& affine,
                                            const Affine<T>& slope, const Compute<T>* scale, int64_t rows,
                                            int64_t channels, T* dx) {
  if (has_relu) {
    input_gradient_rows<true>(x, dy, affine, slope, scale, rows, channels, dx);
  } else {
    input_gradient_rows<false>(x, dy, affine, slope, scale, rows, channels, dx);
  }
}

CONTRASTIVE_VECTOR_CLONES void add_squares(const float* x, const float* shift, int64_t rows, int64_t channels,
                                           float* sum, float* square) {
  add_squares_body(x, shift, rows, channels, sum, square);
}
CONTRASTIVE_VECTOR_CLONES void normalize(Tail tail, const float* x, const Affine<float>& affine, const float* shortcut,
                                         int64_t rows, int64_t channels, float* y) {
  normalize_body(tail, x, affine, shortcut, rows, channels, y);
}
CONTRASTIVE_VECTOR_CLONES void add_products(Tail tail, const float* x, const float* dy, const Affine<float>& affine,
                                            const float* y, int64_t rows, int64_t channels, float* g, float* sum,
                                            float* product) {
  add_products_body(tail, x, dy, affine, y, rows, channels, g, sum, product);
}
CONTRASTIVE_VECTOR_CLONES void input_gradient(bool has_relu, const float* x, const float* dy,
                                              const Affine<float>& affine, const Affine<float>& slope,
                                              const float* scale, int64_t rows, int64_t channels, float* dx) {
  input_gradient_body(has_relu, x, dy, affine, slope, scale, rows, channels, dx);
}

CONTRASTIVE_VECTOR_CLONES void add_squares(const double* x, const double* shift, int64_t rows, int64_t channels,
                                           double* sum, double* square) {
  add_squares_body(x, shift, rows, channels, sum, square);
}
CONTRASTIVE_VECTOR_CLONES void normalize(Tail tail, const double* x, const Affine<double>& affine,
                                         const double* shortcut, int64_t rows, int64_t channels, double* y) {
  normalize_body(tail, x, affine, shortcut, rows, channels, y);
}
CONTRASTIVE_VECTOR_CLONES void add_products(Tail tail, const double* x, const double* dy, const Affine<double>& affine,
                                            const double* y, int64_t rows, int64_t channels, double* g, double* sum,
                                            double* product) {
  add_products_body(tail, x, dy, affine, y, rows, channels, g, sum, product);
}
CONTRASTIVE_VECTOR_CLONES void input_gradient(bool has_relu, const double* x, const double* dy,
                                              const Affine<double>& affine, const Affine<double>& slope,
                                              const double* scale, int64_t rows, int64_t channels, double* dx) {
  input_gradient_body(has_relu, x, dy, affine, slope, scale, rows, channels, dx);
}

CONTRASTIVE_VECTOR_CLONES void add_squares(const c10::BFloat16* x, const float* shift, int64_t rows, int64_t channels,
                                           float* sum, float* square) {
  add_squares_body(x, shift, rows, channels, sum, square);
}
CONTRASTIVE_VECTOR_CLONES void normalize(Tail tail, const c10::BFloat16* x, const Affine<c10::BFloat16>& affine,
                                         const c10::BFloat16* shortcut, int64_t rows, int64_t channels,
                                         c10::BFloat16* y) {
  normalize_body(tail, x, affine, shortcut, rows, channels, y);
}
CONTRASTIVE_VECTOR_CLONES void add_products(Tail tail, const c10::BFloat16* x, const c10::BFloat16* dy,
                                            const Affine<c10::BFloat16>& affine, const c10::BFloat16* y, int64_t rows,
                                            int64_t channels, c10::BFloat16* g, float* sum, float* product) {
  add_products_body(tail, x, dy, affine, y, rows, channels, g, sum, product);
}
CONTRASTIVE_VECTOR_CLONES void input_gradient(bool has_relu, const c10::BFloat16* x, const c10::BFloat16* dy,
                                              const Affine<c10::BFloat16>& affine, const Affine<c10::BFloat16>& slope,
                                              const float* scale, int64_t rows, int64_t channels, c10::BFloat16* dx) {
  input_gradient_body(has_relu, x, dy, affine, slope, scale, rows, channels, dx);
}

/// Two sums over all rows for each channel.
struct Sums {
  std::vector<double> first, second;  ///< [C]
};

int64_t num_parts(int64_t rows) {
  return std::clamp<int64_t>(rows / kMinPartRows, 1, kMaxParts);
}

/// Calls add(first row, number of rows, sum, second sum) for every block of rows and adds all of it up.
template <typename T, typename Add>
Sums sum_rows(int64_t rows, int64_t channels, const Add& add) {
  const auto width = static_cast<size_t>(channels);
  const auto count = num_parts(rows);
  std::vector<Sums> parts(static_cast<size_t>(count));
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    std::vector<Compute<T>> block(2 * width);
    for (int64_t part = begin; part < end; ++part) {
      auto& total = parts[static_cast<size_t>(part)];
      total.first.assign(width, 0);
      total.second.assign(width, 0);
      const int64_t last = rows * (part + 1) / count;
      for (int64_t row = rows * part / count; row < last; row += kBlockRows) {
        std::fill(block.begin(), block.end(), Compute<T>{0});
        add(row, std::min(kBlockRows, last - row), block.data(), block.data() + width);
        for (size_t c = 0; c < width; ++c) {
          total.first[c] += block[c];
          total.second[c] += block[width + c];
        }
      }
    }
  });
  for (auto part = parts.begin() + 1; part != parts.end(); ++part) {
    for (size_t c = 0; c < width; ++c) {
      parts[0].first[c] += part->first[c];
      parts[0].second[c] += part->second[c];
    }
  }
  return std::move(parts[0]);
}

/// Calls work(first row, number of rows) in parallel.
template <typename Work>
void for_rows(int64_t rows, const Work& work) {
  const auto count = num_parts(rows);
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = rows * begin / count;
    work(first, rows * end / count - first);
  });
}

int64_t rows_of(const torch::Tensor& x) {
  return x.numel() / x.size(1);
}

/// Of each channel, [C], double; the variance is the biased one. `count`: values behind them, [].
struct Moments {
  torch::Tensor mean, variance, count;
};

torch::Tensor count_of(const torch::Tensor& x) {
  return at::full({}, static_cast<double>(rows_of(x)), x.options().dtype(at::kDouble));
}

/// What is computed in between two passes over x.
at::ScalarType working_dtype(const torch::Tensor& x) {
  return at::promote_types(x.scalar_type(), at::kFloat);
}

template <typename T>
const T* data_of(const torch::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

/// How the kernels see x: several rows of few channels as one, since a loop over a short row is all start and end.
struct WideRows {
  int64_t rows, channels, fold;

  /// [C] numbers for each of the folded rows.
  torch::Tensor repeat(const torch::Tensor& values) const { return fold > 1 ? values.repeat({fold}) : values; }
  /// Sums over the folded rows, too: [C].
  torch::Tensor total(const std::vector<double>& sums) const {
    return at::tensor(sums, at::kDouble).view({fold, -1}).sum(0);
  }
};

WideRows wide_rows(const torch::Tensor& x) {
  constexpr int64_t kWidth = 128;
  WideRows wide{rows_of(x), x.size(1), 1};
  while (2 * wide.channels <= kWidth && wide.rows % 2 == 0) {
    wide.rows /= 2;
    wide.channels *= 2;
    wide.fold *= 2;
  }
  return wide;
}

template <typename T>
Moments kernel_moments(const torch::Tensor& x) {
  const auto wide = wide_rows(x);
  const auto* data = x.const_data_ptr<T>();
  // Any value near the mean keeps the squares small; the first row's are.
  const auto shift = x.permute({0, 2, 3, 1}).flatten(0, 2)[0].to(working_dtype(x));
  const auto shifts = wide.repeat(shift);
  const auto* offsets = shifts.template const_data_ptr<Compute<T>>();
  const auto sums = sum_rows<T>(wide.rows, wide.channels, [&](int64_t row, int64_t count, auto* sum, auto* square) {
    add_squares(data + row * wide.channels, offsets, count, wide.channels, sum, square);
  });
  const auto count = count_of(x), shifted = wide.total(sums.first) / count;
  const auto variance = (wide.total(sums.second) / count - shifted.square()).clamp_min(0);
  return {shift.to(at::kDouble) + shifted, variance, count};
}

/// (x - shift) factor + offset. [C] each, in working precision.
struct Line {
  torch::Tensor shift, factor, offset;

  Line repeated(const WideRows& wide) const { return {wide.repeat(shift), wide.repeat(factor), wide.repeat(offset)}; }

  /// Of memory of this object.
  template <typename T>
  Affine<T> affine() const {
    using Number = Compute<T>;
    return {data_of<Number>(shift), data_of<Number>(factor), data_of<Number>(offset)};
  }
};

template <typename T>
torch::Tensor kernel_normalized(const torch::Tensor& x, const Line& line, Tail tail, const torch::Tensor& shortcut) {
  const auto wide = wide_rows(x);
  const auto lines = line.repeated(wide);
  auto y = at::empty_like(x);
  const T *in = data_of<T>(x), *added = data_of<T>(shortcut);
  T* out = y.data_ptr<T>();
  const auto affine = lines.affine<T>();
  for_rows(wide.rows, [&](int64_t row, int64_t count) {
    const auto place = row * wide.channels;
    normalize(tail, in + place, affine, added == nullptr ? nullptr : added + place, count, wide.channels, out + place);
  });
  return y;
}

/// Sums of the gradient, and of it times x - shift, for each channel: [C] each, double. `gradient`: that of what the
/// normalisation returns, without its tail; undefined where it is left to be worked out again.
struct Products {
  torch::Tensor sum, product, gradient;
};

template <typename T>
Products kernel_products(const torch::Tensor& x, const torch::Tensor& dy, const Line& line, Tail tail,
                         const torch::Tensor& y) {
  const auto wide = wide_rows(x);
  const auto lines = line.repeated(wide);
  const auto gradient = tail == Tail::kAddRelu ? at::empty_like(x) : torch::Tensor();
  const T *in = data_of<T>(x), *from = data_of<T>(dy), *result = data_of<T>(y);
  T* let_through = gradient.defined() ? gradient.data_ptr<T>() : nullptr;
  const auto affine = lines.affine<T>();
  const auto sums = sum_rows<T>(wide.rows, wide.channels, [&](int64_t row, int64_t count, auto* sum, auto* product) {
    const auto place = row * wide.channels;
    const bool writes = let_through != nullptr;
    add_products(tail, in + place, from + place, affine, writes ? result + place : nullptr, count, wide.channels,
                 writes ? let_through + place : nullptr, sum, product);
  });
  return {wide.total(sums.first), wide.total(sums.second), gradient};
}

template <typename T>
torch::Tensor kernel_input_gradient(const torch::Tensor& x, const torch::Tensor& dy, const Line& line, bool has_relu,
                                    const Line& slope, const torch::Tensor& scale) {
  const auto wide = wide_rows(x);
  const auto lines = line.repeated(wide), wide_slope = slope.repeated(wide);
  auto dx = at::empty_like(x);
  const T *in = data_of<T>(x), *from = data_of<T>(dy);
  T* out = dx.data_ptr<T>();
  const auto affine = lines.affine<T>(), slopes = wide_slope.affine<T>();
  const auto wide_scale = wide.repeat(scale);
  const auto* scales = data_of<Compute<T>>(wide_scale);
  for_rows(wide.rows, [&](int64_t row, int64_t count) {
    const auto place = row * wide.channels;
    input_gradient(has_relu, in + place, from + place, affine, slopes, scales, count, wide.channels, out + place);
  });
  return dx;
}

// The same by torch's operations, for every device, order and precision; they know no tail.

torch::Tensor per_channel(const torch::Tensor& values) {
  return values.view({1, -1, 1, 1});
}

torch::Tensor sum_of_channels(const torch::Tensor& x) {
  return x.sum({0, 2, 3}, /*keepdim=*/false, at::kDouble);
}

Moments torch_moments(const torch::Tensor& x) {
  const auto count = count_of(x), mean = sum_of_channels(x) / count;
  const auto shift = mean.to(working_dtype(x));
  const auto square = sum_of_channels((x - per_channel(shift)).square()) / count;
  return {mean, (square - (shift.to(at::kDouble) - mean).square()).clamp_min(0), count};
}

torch::Tensor torch_line(const torch::Tensor& x, const Line& line) {
  return (x - per_channel(line.shift)).mul_(per_channel(line.factor)).add_(per_channel(line.offset));
}

Products torch_products(const torch::Tensor& x, const torch::Tensor& dy, const torch::Tensor& shift) {
  return {sum_of_channels(dy), sum_of_channels((x - per_channel(shift)).mul_(dy)), {}};
}

bool has_kernel(const torch::Tensor& x) {
  const auto dtype = x.scalar_type();
  const bool has_precision = dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16;
  return x.is_cpu() && has_precision && x.is_contiguous(at::MemoryFormat::ChannelsLast);
}

/// Calls work with a number of the tensor's dtype.
template <typename Work>
auto by_dtype(const torch::Tensor& x, const Work& work) {
  return AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "batch_norm", [&] { return work(scalar_t{}); });
}

Moments moments(const torch::Tensor& x) {
  if (!has_kernel(x)) return torch_moments(x);
  return by_dtype(x, [&](auto number) { return kernel_moments<decltype(number)>(x); });
}

torch::Tensor normalized(const torch::Tensor& x, const Line& line, Tail tail, const torch::Tensor& shortcut) {
  if (!has_kernel(x)) return torch_line(x, line).to(x.scalar_type());
  return by_dtype(x, [&](auto number) { return kernel_normalized<decltype(number)>(x, line, tail, shortcut); });
}

Products products(const torch::Tensor& x, const torch::Tensor& dy, const Line& line, Tail tail,
                  const torch::Tensor& y) {
  if (!has_kernel(x)) return torch_products(x, dy, line.shift);
  return by_dtype(x, [&](auto number) { return kernel_products<decltype(number)>(x, dy, line, tail, y); });
}

torch::Tensor input_gradient(const torch::Tensor& x, const torch::Tensor& dy, const Line& line, bool has_relu,
                             const Line& slope, const torch::Tensor& scale) {
  if (!has_kernel(x)) return torch_line(x, slope).add_(dy * per_channel(scale)).to(x.scalar_type());
  return by_dtype(
      x, [&](auto number) { return kernel_input_gradient<decltype(number)>(x, dy, line, has_relu, slope, scale); });
}

/// The moments of all ranks' values together: the same bits on every rank.
Moments over_ranks(const Moments& own, const distributed::ProcessGroup& group) {
  if (group.is_alone()) return own;
  const auto channels = own.mean.size(0);
  const auto all = group.all_gather(at::cat({own.count.view({1}), own.mean, own.variance}).unsqueeze(0));
  const auto parts = all.split_with_sizes({1, channels, channels}, 1);  // [W, 1], 2 x [W, C]
  const auto count = parts[0].sum(), share = parts[0] / count;
  const auto mean = (share * parts[1]).sum(0);
  return {mean, (share * (parts[2] + (parts[1] - mean).square())).sum(0), count};
}

/// The sums over the ranks.
Products over_ranks(const Products& own, const distributed::ProcessGroup& group) {
  if (group.is_alone()) return own;
  const auto sums = at::stack({own.sum, own.product});
  group.all_reduce(sums);
  return {sums[0], sums[1], own.gradient};
}

void move_running_statistics(const BatchNormStep& step, const Moments& moments) {
  if (!step.running_mean.defined()) return;
  const auto move = [&](torch::Tensor running, const torch::Tensor& value) {
    running.mul_(1 - step.momentum).add_(value.to(running.scalar_type()), step.momentum);
  };
  move(step.running_mean, moments.mean);
  move(step.running_var, moments.variance * (moments.count / (moments.count - 1)));
}

/// Keeps a group from the forward to the backward pass.
struct KeptGroup : torch::CustomClassHolder {
  explicit KeptGroup(distributed::ProcessGroup kept) : group(std::move(kept)) {}
  distributed::ProcessGroup group;
};

/// Batch norm and, where x has a kernel, its tail.
class BatchNormFunction : public torch::autograd::Function<BatchNormFunction> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& x,
                               const torch::Tensor& weight, const torch::Tensor& bias,
                               const std::optional<torch::Tensor>& shortcut, const BatchNormStep& step, Tail tail) {
    const auto dtype = working_dtype(x);
    const auto whole = over_ranks(moments(x), step.group);
    move_running_statistics(step, whole);
    const auto inverse_std = (whole.variance + step.epsilon).rsqrt();
    const auto factor = weight.to(at::kDouble) * inverse_std;
    const auto shift = whole.mean.to(dtype);
    const auto offset = bias.to(at::kDouble) + (shift.to(at::kDouble) - whole.mean) * factor;
    const Line line{shift, factor.to(dtype), offset.to(dtype)};
    const auto y = normalized(x, line, tail, shortcut.value_or(torch::Tensor()));
    const auto kept_y = tail == Tail::kAddRelu ? y : torch::Tensor();
    context->save_for_backward(
        {x, weight, whole.mean, inverse_std, whole.count, line.shift, line.factor, line.offset, kept_y});
    context->saved_data["group"] = c10::IValue::make_capsule(c10::make_intrusive<KeptGroup>(step.group));
    context->saved_data["tail"] = static_cast<int64_t>(tail);
    return y;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    require_no_graph("batch norm");
    const auto saved = context->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1], &mean = saved[2], &inverse_std = saved[3], &count = saved[4];
    const Line line{saved[5], saved[6], saved[7]};
    const auto kept = c10::static_intrusive_pointer_cast<KeptGroup>(context->saved_data["group"].toCapsule());
    const auto tail = static_cast<Tail>(context->saved_data["tail"].toInt());
    const auto dy = has_kernel(x) ? gradients[0].contiguous(at::MemoryFormat::ChannelsLast) : gradients[0];

    const auto about_shift = products(x, dy, line, tail, saved[8]);
    const auto error = line.shift.to(at::kDouble) - mean;
    const Products own{about_shift.sum, (about_shift.product + error * about_shift.sum) * inverse_std,
                       about_shift.gradient};
    const auto whole = over_ranks(own, kept->group);
    // dx = weight inverse_std (g - mean(g) - (x - mean) inverse_std mean(g xhat))
    const auto scale = weight.to(at::kDouble) * inverse_std;
    const auto slope = -scale * inverse_std * whole.product / count;
    const auto offset = -scale * whole.sum / count + slope * error;
    const auto dtype = line.shift.scalar_type();
    const auto dx = input_gradient(x, own.gradient.defined() ? own.gradient : dy, line, tail == Tail::kRelu,
                                   {line.shift, slope.to(dtype), offset.to(dtype)}, scale.to(dtype));
    return {dx,
            own.product.to(weight.scalar_type()),
            own.sum.to(weight.scalar_type()),
            own.gradient,
            torch::Tensor(),
            torch::Tensor()};
  }
};

}  // namespace

torch::Tensor train_batch_norm(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias,
                               const BatchNormStep& step) {
  const bool is_ours = has_kernel(x) && rows_of(x) > 1;
  if (is_ours || !step.group.is_alone()) {
    return BatchNormFunction::apply(x, weight, bias, std::optional<torch::Tensor>(), step, Tail::kNone);
  }
  return at::batch_norm(x, weight, bias, step.running_mean, step.running_var, /*training=*/true, step.momentum,
                        step.epsilon, /*cudnn_enabled=*/true);
}

torch::Tensor train_batch_norm_relu(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias,
                                    const BatchNormStep& step, const torch::Tensor& shortcut) {
  const bool adds_alike = !shortcut.defined() || (has_kernel(shortcut) && shortcut.sizes() == x.sizes() &&
                                                  shortcut.scalar_type() == x.scalar_type());
  if (has_kernel(x) && rows_of(x) > 1 && adds_alike) {
    const auto added = shortcut.defined() ? std::optional(shortcut) : std::nullopt;
    return BatchNormFunction::apply(x, weight, bias, added, step, added ? Tail::kAddRelu : Tail::kRelu);
  }
  return add_relu(train_batch_norm(x, weight, bias, step), shortcut);
}

torch::Tensor add_relu(torch::Tensor y, const torch::Tensor& shortcut) {
  if (shortcut.defined()) y.add_(shortcut);
  return y.relu_();
}

}  // namespace contrastive::models::detail
