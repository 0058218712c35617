#include "contrastive/ops/attention.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/record_function.h>
#include <c10/util/Exception.h>

#include "contrastive/ops/elementwise.h"
#include "contrastive/ops/vector_math.h"

#include "ops/check_tensors.h"
#include "ops/row_parts.h"
#include "ops/softmax.h"

namespace contrastive::ops {
namespace {

using detail::Compute;
using detail::load;
using detail::store;

// Up to here two plain products and a softmax beat ATen's flash kernel on the CPU, whose backward is slow.
constexpr int64_t kShortRow = 128, kShortRowBf16 = 512;

bool is_short(const AttentionShape& shape, at::ScalarType dtype) {
  return shape.tokens <= (dtype == at::kBFloat16 ? kShortRowBf16 : kShortRow);
}

/// Sizes as the loops need them.
struct Layout {
  Layout(const AttentionShape& shape, int64_t width)
      : batch(shape.batch), tokens(shape.tokens), heads(shape.heads), head_width(width / shape.heads) {}

  int64_t width() const { return heads * head_width; }

  /// Of the first value of a head's row in a tensor [parts, B, H, T, E].
  int64_t by_head(int64_t part, int64_t sample, int64_t head, int64_t token) const {
    return (((part * batch + sample) * heads + head) * tokens + token) * head_width;
  }
  /// The same in [B T, parts D].
  int64_t by_token(int64_t parts, int64_t part, int64_t sample, int64_t head, int64_t token) const {
    return ((sample * tokens + token) * parts + part) * width() + head * head_width;
  }

  int64_t batch, tokens, heads, head_width;
};

double query_scale(const Layout& layout) {
  return 1.0 / std::sqrt(static_cast<double>(layout.head_width));
}

template <typename T>
CONTRASTIVE_INLINE void shift_and_scale_body(const T* x, const Compute<T>* bias, Compute<T> scale, int64_t count,
                                             T* result) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) store(result[i], (load(x[i]) + bias[i]) * scale);
}

template <typename T>
CONTRASTIVE_INLINE void scale_and_add_body(const T* x, Compute<T> scale, int64_t count, T* result, Compute<T>* sums) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const auto value = load(x[i]) * scale;
    store(result[i], value);
    sums[i] += value;
  }
}

/// Orders the part of one sample by heads: (qkv + bias) and q scaled. Shapes: bias [3 D].
template <typename T>
CONTRASTIVE_INLINE void split_sample_body(const Layout& layout, int64_t sample, const T* qkv, const Compute<T>* bias,
                                          Compute<T> scale, T* packed) {
  for (int64_t token = 0; token < layout.tokens; ++token) {
    for (int64_t part = 0; part < 3; ++part) {
      for (int64_t head = 0; head < layout.heads; ++head) {
        shift_and_scale_body(qkv + layout.by_token(3, part, sample, head, token),
                             bias + part * layout.width() + head * layout.head_width, part == 0 ? scale : Compute<T>(1),
                             layout.head_width, packed + layout.by_head(part, sample, head, token));
      }
    }
  }
}

/// The way back, for gradients, which are also added to `sums`, [3 D].
template <typename T>
CONTRASTIVE_INLINE void merge_sample_body(const Layout& layout, int64_t sample, const T* packed, Compute<T> scale,
                                          T* qkv, Compute<T>* sums) {
  for (int64_t token = 0; token < layout.tokens; ++token) {
    for (int64_t part = 0; part < 3; ++part) {
      for (int64_t head = 0; head < layout.heads; ++head) {
        scale_and_add_body(packed + layout.by_head(part, sample, head, token), part == 0 ? scale : Compute<T>(1),
                           layout.head_width, qkv + layout.by_token(3, part, sample, head, token),
                           sums + part * layout.width() + head * layout.head_width);
      }
    }
  }
}

CONTRASTIVE_VECTOR_CLONES void split_sample(const Layout& layout, int64_t sample, const float* qkv, const float* bias,
                                            float scale, float* packed) {
  split_sample_body(layout, sample, qkv, bias, scale, packed);
}
CONTRASTIVE_VECTOR_CLONES void split_sample(const Layout& layout, int64_t sample, const at::BFloat16* qkv,
                                            const float* bias, float scale, at::BFloat16* packed) {
  split_sample_body(layout, sample, qkv, bias, scale, packed);
}
void split_sample(const Layout& layout, int64_t sample, const double* qkv, const double* bias, double scale,
                  double* packed) {
  split_sample_body(layout, sample, qkv, bias, scale, packed);
}

CONTRASTIVE_VECTOR_CLONES void merge_sample(const Layout& layout, int64_t sample, const float* packed, float scale,
                                            float* qkv, float* sums) {
  merge_sample_body(layout, sample, packed, scale, qkv, sums);
}
CONTRASTIVE_VECTOR_CLONES void merge_sample(const Layout& layout, int64_t sample, const at::BFloat16* packed,
                                            float scale, at::BFloat16* qkv, float* sums) {
  merge_sample_body(layout, sample, packed, scale, qkv, sums);
}
void merge_sample(const Layout& layout, int64_t sample, const double* packed, double scale, double* qkv, double* sums) {
  merge_sample_body(layout, sample, packed, scale, qkv, sums);
}

/// [B T, 3 D] to [3, B, H, T, E], with the bias added and q scaled.
torch::Tensor split_heads(const torch::Tensor& qkv, const torch::Tensor& bias, const Layout& layout, double scale) {
  auto packed = at::empty({3, layout.batch, layout.heads, layout.tokens, layout.head_width}, qkv.options());
  const auto offsets = bias.defined() ? bias : at::zeros({qkv.size(1)}, qkv.options().dtype(vector_dtype(qkv)));
  DISPATCH_STORAGE(qkv.scalar_type(), "split_heads", [&] {
    using C = Compute<scalar_t>;
    at::parallel_for(0, layout.batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t sample = begin; sample < end; ++sample) {
        split_sample(layout, sample, qkv.const_data_ptr<scalar_t>(), offsets.const_data_ptr<C>(), static_cast<C>(scale),
                     packed.mutable_data_ptr<scalar_t>());
      }
    });
  });
  return packed;
}

/// Gradients [3, B, H, T, E] to those of qkv and its bias.
AttentionGradient merge_gradients(const torch::Tensor& packed, const Layout& layout, double scale) {
  const auto width = 3 * layout.width();
  AttentionGradient result{at::empty({layout.batch * layout.tokens, width}, packed.options()),
                           at::empty({width}, packed.options().dtype(vector_dtype(packed)))};
  DISPATCH_STORAGE(packed.scalar_type(), "merge_gradients", [&] {
    using C = Compute<scalar_t>;
    const auto work = [&](int64_t begin, int64_t end, C* sums) {
      for (int64_t sample = begin; sample < end; ++sample) {
        merge_sample(layout, sample, packed.const_data_ptr<scalar_t>(), static_cast<C>(scale),
                     result.qkv.mutable_data_ptr<scalar_t>(), sums);
      }
    };
    detail::sum_row_parts(layout.batch, width, result.bias.mutable_data_ptr<C>(), work);
  });
  return result;
}

/// Calls copy(place by token, place by head, bytes) for the row of every head, with places in bytes, in parallel.
template <typename Copy>
void for_each_row(const Layout& layout, size_t value_bytes, const Copy& copy) {
  const auto bytes = static_cast<int64_t>(value_bytes);
  at::parallel_for(0, layout.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t sample = begin; sample < end; ++sample) {
      for (int64_t token = 0; token < layout.tokens; ++token) {
        for (int64_t head = 0; head < layout.heads; ++head) {
          copy(layout.by_token(1, 0, sample, head, token) * bytes, layout.by_head(0, sample, head, token) * bytes,
               static_cast<size_t>(layout.head_width * bytes));
        }
      }
    }
  });
}

/// [B T, D] to [B H, T, E].
torch::Tensor to_heads(const torch::Tensor& x, const Layout& layout) {
  auto result = at::empty({layout.batch * layout.heads, layout.tokens, layout.head_width}, x.options());
  const auto* in = static_cast<const char*>(x.const_data_ptr());
  auto* out = static_cast<char*>(result.mutable_data_ptr());
  for_each_row(layout, x.element_size(), [&](int64_t by_token, int64_t by_head, size_t bytes) {
    std::memcpy(out + by_head, in + by_token, bytes);
  });
  return result;
}

/// [B H, T, E], contiguous, to [B T, D].
torch::Tensor from_heads(const torch::Tensor& x, const Layout& layout) {
  auto result = at::empty({layout.batch * layout.tokens, layout.width()}, x.options());
  const auto* in = static_cast<const char*>(x.const_data_ptr());
  auto* out = static_cast<char*>(result.mutable_data_ptr());
  for_each_row(layout, x.element_size(), [&](int64_t by_token, int64_t by_head, size_t bytes) {
    std::memcpy(out + by_token, in + by_head, bytes);
  });
  return result;
}

/// [3, B, H, T, E] to the matrices of part i, [B H, T, E].
torch::Tensor heads_of(const torch::Tensor& packed, int64_t part) {
  return packed[part].flatten(0, 1);
}

AttentionResult short_attention(const torch::Tensor& qkv, const torch::Tensor& bias, const AttentionShape& shape,
                                const Layout& layout, const torch::Tensor& hidden) {
  AttentionResult result;
  result.state.packed = split_heads(qkv, bias, layout, query_scale(layout));
  const auto& packed = result.state.packed;
  auto scores = heads_of(packed, 0).bmm(heads_of(packed, 1).transpose(1, 2));  // [B H, T, T]
  detail::softmax_in_place(scores, shape, hidden);
  result.values = from_heads(scores.bmm(heads_of(packed, 2)), layout);
  result.state.probabilities = std::move(scores);
  return result;
}

AttentionGradient short_attention_backward(const torch::Tensor& gradient, const Layout& layout,
                                           const AttentionState& state) {
  const auto& packed = state.packed;
  const auto by_head = to_heads(gradient, layout);
  const auto packed_gradient = at::empty_like(packed);
  auto dq = heads_of(packed_gradient, 0), dk = heads_of(packed_gradient, 1), dv = heads_of(packed_gradient, 2);
  at::bmm_out(dv, state.probabilities.transpose(1, 2), by_head);
  auto scores = by_head.bmm(heads_of(packed, 2).transpose(1, 2));
  detail::softmax_backward_in_place(scores, state.probabilities);
  at::bmm_out(dq, scores, heads_of(packed, 1));
  at::bmm_out(dk, scores.transpose(1, 2), heads_of(packed, 0));
  return merge_gradients(packed_gradient, layout, query_scale(layout));
}

/// What flash attention adds to the scores: minus infinity where a key is hidden. [B, 1, T, T], expanded.
std::optional<at::Tensor> flash_mask(const torch::Tensor& hidden, const AttentionShape& shape, at::ScalarType dtype) {
  if (!hidden.defined()) return std::nullopt;
  const auto mask =
      at::zeros({shape.batch, 1, 1, shape.tokens}, dtype)
          .masked_fill_(hidden.view({shape.batch, 1, 1, shape.tokens}), -std::numeric_limits<double>::infinity());
  return mask.expand({shape.batch, shape.heads, shape.tokens, shape.tokens});
}

AttentionResult long_attention(const torch::Tensor& qkv, const torch::Tensor& bias, const AttentionShape& shape,
                               const Layout& layout, const torch::Tensor& hidden) {
  AttentionResult result;
  auto& state = result.state;
  state.packed = split_heads(qkv, bias, layout, 1.0);
  std::tie(state.result, state.log_sums) = at::_scaled_dot_product_flash_attention_for_cpu(
      state.packed[0], state.packed[1], state.packed[2], /*dropout_p=*/0.0, shape.causal,
      flash_mask(hidden, shape, qkv.scalar_type()));
  result.values = state.result.transpose(1, 2).reshape({qkv.size(0), layout.width()});
  return result;
}

AttentionGradient long_attention_backward(const torch::Tensor& gradient, const AttentionShape& shape,
                                          const Layout& layout, const AttentionState& state,
                                          const torch::Tensor& hidden) {
  const auto by_head = to_heads(gradient, layout).view(state.result.sizes());
  const auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      by_head, state.packed[0], state.packed[1], state.packed[2], state.result, state.log_sums, /*dropout_p=*/0.0,
      shape.causal, flash_mask(hidden, shape, gradient.scalar_type()));
  const auto rows = [&](const torch::Tensor& x) {
    return x.transpose(1, 2).reshape({gradient.size(0), layout.width()});
  };
  AttentionGradient result;
  result.qkv = at::cat({rows(dq), rows(dk), rows(dv)}, 1);
  result.bias = column_sums(result.qkv);
  return result;
}

void check(const char* op, const torch::Tensor& x, const AttentionShape& shape, int64_t parts,
           const torch::Tensor& hidden) {
  detail::check_matrix(op, x);
  TORCH_CHECK(shape.heads > 0 && x.size(0) == shape.batch * shape.tokens && x.size(1) % (parts * shape.heads) == 0, "[",
              op, "] ", x.sizes(), " can't be ", shape.batch, " samples of ", shape.tokens, " tokens with ", parts,
              " x ", shape.heads, " heads");
  TORCH_CHECK(!hidden.defined() || !shape.causal, "[", op, "] a causal mask and one of keys don't go together");
}

}  // namespace

AttentionResult attention(const torch::Tensor& qkv, const torch::Tensor& bias, const AttentionShape& shape,
                          const torch::Tensor& hidden) {
  RECORD_USER_SCOPE("contrastive::attention");
  check("attention", qkv, shape, 3, hidden);
  if (bias.defined()) detail::check_vector("attention", "bias", bias, qkv);
  const Layout layout(shape, qkv.size(1) / 3);
  return is_short(shape, qkv.scalar_type()) ? short_attention(qkv, bias, shape, layout, hidden)
                                            : long_attention(qkv, bias, shape, layout, hidden);
}

AttentionGradient attention_backward(const torch::Tensor& gradient, const AttentionShape& shape,
                                     const AttentionState& state, const torch::Tensor& hidden) {
  RECORD_USER_SCOPE("contrastive::attention_backward");
  check("attention_backward", gradient, shape, 1, hidden);
  const Layout layout(shape, gradient.size(1));
  return state.probabilities.defined() ? short_attention_backward(gradient, layout, state)
                                       : long_attention_backward(gradient, shape, layout, state, hidden);
}

}  // namespace contrastive::ops
