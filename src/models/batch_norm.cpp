#include "models/batch_norm.h"

#include <algorithm>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

namespace contrastive::models::detail {
namespace {

// Rows that are summed in the tensor's precision before the sums go into double precision.
constexpr int64_t kBlockRows = 32;
// Parts of a batch that are summed apart: a fixed number, so that results don't depend on that of the threads.
constexpr int64_t kParts = 64;

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#define CONTRASTIVE_VECTOR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CONTRASTIVE_VECTOR_CLONES
#endif
#define CONTRASTIVE_INLINE inline __attribute__((always_inline))

/// 64 bytes of numbers that the compiler computes with at once, in as many registers as the processor needs for them.
template <typename T>
struct Lanes {
  typedef T Vector __attribute__((vector_size(64), aligned(sizeof(T)), may_alias));
  static constexpr int64_t kCount = 64 / sizeof(T);

  CONTRASTIVE_INLINE static const Vector& at(const T* place) { return *reinterpret_cast<const Vector*>(place); }
  CONTRASTIVE_INLINE static Vector& at(T* place) { return *reinterpret_cast<Vector*>(place); }
};

/// Adds the sums of y, and of y (x - shift), over the rows. Shapes: x, y [rows, C], shift, sum, product [C].
template <typename T>
CONTRASTIVE_INLINE void add_products_body(const T* x, const T* y, const T* shift, int64_t rows, int64_t channels,
                                          T* sum, T* product) {
  using L = Lanes<T>;
  for (int64_t r = 0; r < rows; ++r, x += channels, y += channels) {
    int64_t c = 0;
    for (; c + L::kCount <= channels; c += L::kCount) {
      L::at(sum + c) += L::at(y + c);
      L::at(product + c) += L::at(y + c) * (L::at(x + c) - L::at(shift + c));
    }
    for (; c < channels; ++c) {
      sum[c] += y[c];
      product[c] += y[c] * (x[c] - shift[c]);
    }
  }
}

/// The same with y = x - shift.
template <typename T>
CONTRASTIVE_INLINE void add_squares_body(const T* x, const T* shift, int64_t rows, int64_t channels, T* sum,
                                         T* square) {
  using L = Lanes<T>;
  for (int64_t r = 0; r < rows; ++r, x += channels) {
    int64_t c = 0;
    for (; c + L::kCount <= channels; c += L::kCount) {
      const typename L::Vector difference = L::at(x + c) - L::at(shift + c);
      L::at(sum + c) += difference;
      L::at(square + c) += difference * difference;
    }
    for (; c < channels; ++c) {
      const T difference = x[c] - shift[c];
      sum[c] += difference;
      square[c] += difference * difference;
    }
  }
}

/// result = (x - shift) factor + offset, and y y_factor more unless y is null. Shapes: x, y, result [rows, C], the
/// others [C].
template <typename T>
CONTRASTIVE_INLINE void combine_body(const T* x, const T* shift, const T* factor, const T* offset, const T* y,
                                     const T* y_factor, int64_t rows, int64_t channels, T* result) {
  using L = Lanes<T>;
  for (int64_t r = 0; r < rows; ++r, x += channels, result += channels) {
    int64_t c = 0;
    for (; c + L::kCount <= channels; c += L::kCount) {
      typename L::Vector value = (L::at(x + c) - L::at(shift + c)) * L::at(factor + c) + L::at(offset + c);
      if (y != nullptr) value += L::at(y + c) * L::at(y_factor + c);
      L::at(result + c) = value;
    }
    for (; c < channels; ++c) {
      result[c] = (x[c] - shift[c]) * factor[c] + offset[c];
      if (y != nullptr) result[c] += y[c] * y_factor[c];
    }
    if (y != nullptr) y += channels;
  }
}

CONTRASTIVE_VECTOR_CLONES void add_products(const float* x, const float* y, const float* shift, int64_t rows,
                                            int64_t channels, float* sum, float* product) {
  add_products_body(x, y, shift, rows, channels, sum, product);
}
CONTRASTIVE_VECTOR_CLONES void add_squares(const float* x, const float* shift, int64_t rows, int64_t channels,
                                           float* sum, float* square) {
  add_squares_body(x, shift, rows, channels, sum, square);
}
CONTRASTIVE_VECTOR_CLONES void combine(const float* x, const float* shift, const float* factor, const float* offset,
                                       const float* y, const float* y_factor, int64_t rows, int64_t channels,
                                       float* result) {
  combine_body(x, shift, factor, offset, y, y_factor, rows, channels, result);
}

void add_products(const double* x, const double* y, const double* shift, int64_t rows, int64_t channels, double* sum,
                  double* product) {
  add_products_body(x, y, shift, rows, channels, sum, product);
}
void add_squares(const double* x, const double* shift, int64_t rows, int64_t channels, double* sum, double* square) {
  add_squares_body(x, shift, rows, channels, sum, square);
}
void combine(const double* x, const double* shift, const double* factor, const double* offset, const double* y,
             const double* y_factor, int64_t rows, int64_t channels, double* result) {
  combine_body(x, shift, factor, offset, y, y_factor, rows, channels, result);
}

/// Two sums over all rows for each channel.
struct Sums {
  std::vector<double> first, second;  ///< [C]
};

/// Calls add(first row, number of rows, sum, second sum) for every block of rows and adds all of it up.
template <typename T, typename Add>
Sums sum_rows(int64_t rows, int64_t channels, const Add& add) {
  const auto width = static_cast<size_t>(channels);
  std::vector<Sums> parts(kParts);
  at::parallel_for(0, kParts, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> block(2 * width);
    for (int64_t part = begin; part < end; ++part) {
      auto& total = parts[static_cast<size_t>(part)];
      total.first.assign(width, 0);
      total.second.assign(width, 0);
      const int64_t last = rows * (part + 1) / kParts;
      for (int64_t row = rows * part / kParts; row < last; row += kBlockRows) {
        std::fill(block.begin(), block.end(), T{0});
        add(row, std::min(kBlockRows, last - row), block.data(), block.data() + width);
        for (size_t c = 0; c < width; ++c) {
          total.first[c] += block[c];
          total.second[c] += block[width + c];
        }
      }
    }
  });
  Sums sums{std::vector<double>(width, 0), std::vector<double>(width, 0)};
  for (const auto& part : parts) {
    for (size_t c = 0; c < width; ++c) {
      sums.first[c] += part.first[c];
      sums.second[c] += part.second[c];
    }
  }
  return sums;
}

/// Calls work(first row, number of rows) in parallel.
template <typename Work>
void for_rows(int64_t rows, const Work& work) {
  at::parallel_for(0, kParts, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = rows * begin / kParts;
    work(first, rows * end / kParts - first);
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

template <typename T>
Moments kernel_moments(const torch::Tensor& x) {
  const auto rows = rows_of(x), channels = x.size(1);
  const auto* data = x.const_data_ptr<T>();
  // Any value near the mean keeps the squares small; the first row's are.
  const auto sums = sum_rows<T>(rows, channels, [&](int64_t row, int64_t count, T* sum, T* square) {
    add_squares(data + row * channels, data, count, channels, sum, square);
  });
  auto mean = at::empty({channels}, at::kDouble), variance = at::empty({channels}, at::kDouble);
  for (int64_t c = 0; c < channels; ++c) {
    const double shifted = sums.first[static_cast<size_t>(c)] / static_cast<double>(rows);
    mean.data_ptr<double>()[c] = static_cast<double>(data[c]) + shifted;
    variance.data_ptr<double>()[c] =
        std::max(0.0, sums.second[static_cast<size_t>(c)] / static_cast<double>(rows) - shifted * shifted);
  }
  return {mean, variance, count_of(x)};
}

/// (x - shift) factor + offset + y y_factor, y and y_factor undefined for none. Shapes: x, y [B, C, H, W], others [C].
template <typename T>
torch::Tensor kernel_combined(const torch::Tensor& x, const torch::Tensor& shift, const torch::Tensor& factor,
                              const torch::Tensor& offset, const torch::Tensor& y, const torch::Tensor& y_factor) {
  const auto channels = x.size(1);
  auto result = at::empty_like(x);
  T* out = result.data_ptr<T>();
  const auto data = [](const torch::Tensor& tensor) -> const T* {
    return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
  };
  const T *in = data(x), *second = data(y), *shifts = data(shift), *factors = data(factor), *offsets = data(offset);
  const T* second_factors = data(y_factor);
  for_rows(rows_of(x), [&](int64_t row, int64_t count) {
    const auto place = row * channels;
    combine(in + place, shifts, factors, offsets, second == nullptr ? nullptr : second + place, second_factors, count,
            channels, out + place);
  });
  return result;
}

/// Sums of y, and of y (x - shift), for each channel. [C] each, double.
struct Products {
  torch::Tensor sum, product;
};

template <typename T>
Products kernel_products(const torch::Tensor& x, const torch::Tensor& y, const torch::Tensor& shift) {
  const auto channels = x.size(1);
  const T *in = x.const_data_ptr<T>(), *second = y.const_data_ptr<T>(), *shifts = shift.const_data_ptr<T>();
  const auto sums = sum_rows<T>(rows_of(x), channels, [&](int64_t row, int64_t count, T* sum, T* product) {
    add_products(in + row * channels, second + row * channels, shifts, count, channels, sum, product);
  });
  return {at::tensor(sums.first, at::kDouble), at::tensor(sums.second, at::kDouble)};
}

// The same three by torch's operations, for every device, order and precision.

torch::Tensor per_channel(const torch::Tensor& values) {
  return values.view({1, -1, 1, 1});
}

torch::Tensor sum_of_channels(const torch::Tensor& x) {
  return x.sum({0, 2, 3}, /*keepdim=*/false, at::kDouble);
}

/// What is computed in between two passes over x.
at::ScalarType working_dtype(const torch::Tensor& x) {
  return at::promote_types(x.scalar_type(), at::kFloat);
}

Moments torch_moments(const torch::Tensor& x) {
  const auto count = count_of(x), mean = sum_of_channels(x) / count;
  const auto shift = mean.to(working_dtype(x));
  const auto square = sum_of_channels((x - per_channel(shift)).square()) / count;
  return {mean, (square - (shift.to(at::kDouble) - mean).square()).clamp_min(0), count};
}

torch::Tensor torch_combined(const torch::Tensor& x, const torch::Tensor& shift, const torch::Tensor& factor,
                             const torch::Tensor& offset, const torch::Tensor& y, const torch::Tensor& y_factor) {
  auto result = (x - per_channel(shift)).mul_(per_channel(factor)).add_(per_channel(offset));
  if (y.defined()) result.add_(y * per_channel(y_factor));
  return result.to(x.scalar_type());
}

Products torch_products(const torch::Tensor& x, const torch::Tensor& y, const torch::Tensor& shift) {
  return {sum_of_channels(y), sum_of_channels((x - per_channel(shift)).mul_(y))};
}

bool has_kernel(const torch::Tensor& x) {
  const bool has_precision = x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble;
  return x.is_cpu() && has_precision && x.is_contiguous(at::MemoryFormat::ChannelsLast);
}

Moments moments(const torch::Tensor& x) {
  if (!has_kernel(x)) return torch_moments(x);
  return AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "batch_norm", [&] { return kernel_moments<scalar_t>(x); });
}

torch::Tensor combined(const torch::Tensor& x, const torch::Tensor& shift, const torch::Tensor& factor,
                       const torch::Tensor& offset, const torch::Tensor& y = {}, const torch::Tensor& y_factor = {}) {
  if (!has_kernel(x)) return torch_combined(x, shift, factor, offset, y, y_factor);
  return AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "batch_norm",
                                    [&] { return kernel_combined<scalar_t>(x, shift, factor, offset, y, y_factor); });
}

Products products(const torch::Tensor& x, const torch::Tensor& y, const torch::Tensor& shift) {
  if (!has_kernel(x)) return torch_products(x, y, shift);
  return AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "batch_norm_backward",
                                    [&] { return kernel_products<scalar_t>(x, y, shift); });
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

/// The sum of both over the ranks.
Products over_ranks(const Products& own, const distributed::ProcessGroup& group) {
  if (group.is_alone()) return own;
  const auto sums = at::stack({own.sum, own.product});
  group.all_reduce(sums);
  return {sums[0], sums[1]};
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

class BatchNormFunction : public torch::autograd::Function<BatchNormFunction> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& x,
                               const torch::Tensor& weight, const torch::Tensor& bias, const BatchNormStep& step) {
    const auto dtype = working_dtype(x);
    const auto whole = over_ranks(moments(x), step.group);
    move_running_statistics(step, whole);
    const auto inverse_std = (whole.variance + step.epsilon).rsqrt();
    const auto factor = weight.to(at::kDouble) * inverse_std;
    const auto shift = whole.mean.to(dtype);
    const auto offset = bias.to(at::kDouble) + (shift.to(at::kDouble) - whole.mean) * factor;
    context->save_for_backward({x, weight, whole.mean, inverse_std, whole.count});
    context->saved_data["group"] = c10::IValue::make_capsule(c10::make_intrusive<KeptGroup>(step.group));
    return combined(x, shift, factor.to(dtype), offset.to(dtype));
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1], &mean = saved[2], &inverse_std = saved[3], &count = saved[4];
    const auto kept = c10::static_intrusive_pointer_cast<KeptGroup>(context->saved_data["group"].toCapsule());
    const auto gradient = has_kernel(x) ? gradients[0].contiguous(at::MemoryFormat::ChannelsLast) : gradients[0];
    const auto dtype = working_dtype(x);
    const auto shift = mean.to(dtype);

    const auto about_shift = products(x, gradient, shift);
    const auto error = shift.to(at::kDouble) - mean;
    const Products own{about_shift.sum, (about_shift.product + error * about_shift.sum) * inverse_std};
    const auto whole = over_ranks(own, kept->group);
    // dx = weight inverse_std (dy - mean(dy) - (x - mean) inverse_std mean(dy xhat))
    const auto scale = weight.to(at::kDouble) * inverse_std;
    const auto slope = -scale * inverse_std * whole.product / count;
    const auto offset = -scale * whole.sum / count + slope * error;
    const auto dx = combined(x, shift, slope.to(dtype), offset.to(dtype), gradient, scale.to(dtype));
    return {dx, own.product.to(weight.scalar_type()), own.sum.to(weight.scalar_type()), torch::Tensor()};
  }
};

}  // namespace

torch::Tensor train_batch_norm(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias,
                               const BatchNormStep& step) {
  const bool is_ours = has_kernel(x) && weight.scalar_type() == x.scalar_type() && rows_of(x) > 1;
  if (is_ours || !step.group.is_alone()) return BatchNormFunction::apply(x, weight, bias, step);
  return at::batch_norm(x, weight, bias, step.running_mean, step.running_var, /*training=*/true, step.momentum,
                        step.epsilon, /*cudnn_enabled=*/true);
}

}  // namespace contrastive::models::detail
