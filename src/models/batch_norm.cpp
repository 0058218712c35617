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

/// Mean and variance (biased) of each channel. [C] each, double.
template <typename T>
std::pair<torch::Tensor, torch::Tensor> moments(const torch::Tensor& x) {
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
  return {mean, variance};
}

/// (x - shift) factor + offset + y y_factor, y and y_factor undefined for none. Shapes: x, y [B, C, H, W], others [C].
template <typename T>
torch::Tensor combined(const torch::Tensor& x, const torch::Tensor& shift, const torch::Tensor& factor,
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

/// Gradients of x, weight and bias. `mean` and `inverse_std`: [C], double.
template <typename T>
torch::autograd::variable_list gradients_of(const torch::Tensor& gradient, const torch::Tensor& x,
                                            const torch::Tensor& weight, const torch::Tensor& mean,
                                            const torch::Tensor& inverse_std) {
  const auto rows = rows_of(x), channels = x.size(1);
  const auto shift = mean.to(x.scalar_type());
  const T *in = x.const_data_ptr<T>(), *dy = gradient.const_data_ptr<T>(), *shifts = shift.const_data_ptr<T>();
  const auto sums = sum_rows<T>(rows, channels, [&](int64_t row, int64_t count, T* sum, T* product) {
    add_products(in + row * channels, dy + row * channels, shifts, count, channels, sum, product);
  });
  const auto as_tensor = [&](const std::vector<double>& values) { return at::tensor(values, at::kDouble); };
  const auto bias_gradient = as_tensor(sums.first);
  // The products were taken about the rounded mean.
  const auto centred = as_tensor(sums.second) + (shift.to(at::kDouble) - mean) * bias_gradient;
  const auto weight_gradient = centred * inverse_std;
  // dx = weight inverse_std (dy - mean(dy) - (x - mean) inverse_std mean(dy xhat))
  const auto scale = weight.to(at::kDouble) * inverse_std;
  const auto slope = -scale * inverse_std * weight_gradient / rows;
  const auto offset = -scale * bias_gradient / rows + slope * (shift.to(at::kDouble) - mean);
  const auto dtype = x.scalar_type();
  return {combined<T>(x, shift, slope.to(dtype), offset.to(dtype), gradient, scale.to(dtype)),
          weight_gradient.to(weight.scalar_type()), bias_gradient.to(weight.scalar_type())};
}

class BatchNormFunction : public torch::autograd::Function<BatchNormFunction> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& x,
                               const torch::Tensor& weight, const torch::Tensor& bias, torch::Tensor running_mean,
                               torch::Tensor running_var, double momentum, double epsilon) {
    torch::Tensor result;
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "batch_norm", [&] {
      const auto [mean, variance] = moments<scalar_t>(x);
      const auto inverse_std = (variance + epsilon).rsqrt();
      const auto factor = weight.to(at::kDouble) * inverse_std;
      const auto dtype = x.scalar_type();
      const auto shift = mean.to(dtype);
      const auto offset = bias.to(at::kDouble) + (shift.to(at::kDouble) - mean) * factor;
      result = combined<scalar_t>(x, shift, factor.to(dtype), offset.to(dtype), {}, {});
      const auto rows = static_cast<double>(rows_of(x));
      running_mean.mul_(1 - momentum).add_(mean.to(running_mean.scalar_type()), momentum);
      running_var.mul_(1 - momentum).add_((variance * (rows / (rows - 1))).to(running_var.scalar_type()), momentum);
      context->save_for_backward({x, weight, mean, inverse_std});
    });
    return result;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto gradient = gradients[0].contiguous(at::MemoryFormat::ChannelsLast);
    torch::autograd::variable_list results;
    AT_DISPATCH_FLOATING_TYPES(gradient.scalar_type(), "batch_norm_backward", [&] {
      results = gradients_of<scalar_t>(gradient, saved[0], saved[1], saved[2], saved[3]);
    });
    results.resize(7);
    return results;
  }
};

bool is_ours(const torch::Tensor& x, const torch::Tensor& weight) {
  const bool has_precision = x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble;
  return x.is_cpu() && has_precision && weight.scalar_type() == x.scalar_type() && rows_of(x) > 1 &&
         x.is_contiguous(at::MemoryFormat::ChannelsLast);
}

}  // namespace

torch::Tensor train_batch_norm(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias,
                               const torch::Tensor& running_mean, const torch::Tensor& running_var, double momentum,
                               double epsilon) {
  if (is_ours(x, weight)) {
    return BatchNormFunction::apply(x, weight, bias, running_mean, running_var, momentum, epsilon);
  }
  return at::batch_norm(x, weight, bias, running_mean, running_var, /*training=*/true, momentum, epsilon,
                        /*cudnn_enabled=*/true);
}

}  // namespace contrastive::models::detail
