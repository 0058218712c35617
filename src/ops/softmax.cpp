#include "ops/softmax.h"

#include <limits>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include "contrastive/ops/vector_math.h"

#include "ops/check_tensors.h"
#include "ops/row_parts.h"

namespace contrastive::ops::detail {
namespace {

/// In place, by way of `row`, [count]. `hidden`: of the keys, or null.
template <typename T>
CONTRASTIVE_INLINE void softmax_row_body(T* scores, const bool* hidden, int64_t count, Compute<T>* row) {
  using C = Compute<T>;
  C largest = -std::numeric_limits<C>::infinity();
  if (hidden == nullptr) {
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < count; ++i) {
      row[i] = load(scores[i]);
      largest = std::max(largest, row[i]);
    }
  } else {
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < count; ++i) {
      row[i] = hidden[i] ? -std::numeric_limits<C>::infinity() : load(scores[i]);
      largest = std::max(largest, row[i]);
    }
  }
  C sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) {
    row[i] = exponential(row[i] - largest);
    sum += row[i];
  }
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) store(scores[i], row[i] / sum);
}

template <typename T>
CONTRASTIVE_INLINE void softmax_rows_body(T* scores, int64_t begin, int64_t end, int64_t tokens, bool causal,
                                          const bool* hidden, Compute<T>* row) {
  for (int64_t i = begin; i < end; ++i) {
    T* place = scores + i * tokens;
    const int64_t seen = causal ? i % tokens + 1 : tokens;
    softmax_row_body(place, hidden, seen, row);
    std::fill(place + seen, place + tokens, T(0));
  }
}

template <typename T>
CONTRASTIVE_INLINE void backward_rows_body(T* gradient, const T* probabilities, int64_t rows, int64_t tokens) {
  using C = Compute<T>;
  for (int64_t row = 0; row < rows; ++row, gradient += tokens, probabilities += tokens) {
    C dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < tokens; ++i) dot += load(gradient[i]) * load(probabilities[i]);
#pragma omp simd
    for (int64_t i = 0; i < tokens; ++i) store(gradient[i], load(probabilities[i]) * (load(gradient[i]) - dot));
  }
}

CONTRASTIVE_VECTOR_CLONES void softmax_rows(float* scores, int64_t begin, int64_t end, int64_t tokens, bool causal,
                                            const bool* hidden, float* row) {
  softmax_rows_body(scores, begin, end, tokens, causal, hidden, row);
}
CONTRASTIVE_VECTOR_CLONES void softmax_rows(at::BFloat16* scores, int64_t begin, int64_t end, int64_t tokens,
                                            bool causal, const bool* hidden, float* row) {
  softmax_rows_body(scores, begin, end, tokens, causal, hidden, row);
}
void softmax_rows(double* scores, int64_t begin, int64_t end, int64_t tokens, bool causal, const bool* hidden,
                  double* row) {
  softmax_rows_body(scores, begin, end, tokens, causal, hidden, row);
}

CONTRASTIVE_VECTOR_CLONES void backward_rows(float* gradient, const float* probabilities, int64_t rows,
                                             int64_t tokens) {
  backward_rows_body(gradient, probabilities, rows, tokens);
}
CONTRASTIVE_VECTOR_CLONES void backward_rows(at::BFloat16* gradient, const at::BFloat16* probabilities, int64_t rows,
                                             int64_t tokens) {
  backward_rows_body(gradient, probabilities, rows, tokens);
}
void backward_rows(double* gradient, const double* probabilities, int64_t rows, int64_t tokens) {
  backward_rows_body(gradient, probabilities, rows, tokens);
}

}  // namespace

void softmax_in_place(torch::Tensor& scores, const AttentionShape& shape, const torch::Tensor& hidden) {
  const auto tokens = shape.tokens, rows_of_sample = shape.heads * tokens;
  const auto hidden_keys = hidden.defined() ? hidden.contiguous() : hidden;
  DISPATCH_STORAGE(scores.scalar_type(), "softmax", [&] {
    auto* data = scores.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, shape.batch, 1, [&](int64_t begin, int64_t end) {
      std::vector<Compute<scalar_t>> row(static_cast<size_t>(tokens));
      for (int64_t sample = begin; sample < end; ++sample) {
        const bool* keys = hidden_keys.defined() ? hidden_keys.const_data_ptr<bool>() + sample * tokens : nullptr;
        softmax_rows(data, sample * rows_of_sample, (sample + 1) * rows_of_sample, tokens, shape.causal, keys,
                     row.data());
      }
    });
  });
}

void softmax_backward_in_place(torch::Tensor& gradient, const torch::Tensor& probabilities) {
  const auto tokens = gradient.size(2);
  DISPATCH_STORAGE(gradient.scalar_type(), "softmax_backward", [&] {
    auto* data = gradient.mutable_data_ptr<scalar_t>();
    const auto* known = probabilities.const_data_ptr<scalar_t>();
    for_row_parts(gradient.size(0) * tokens, [&](int64_t begin, int64_t end) {
      backward_rows(data + begin * tokens, known + begin * tokens, end - begin, tokens);
    });
  });
}

}  // namespace contrastive::ops::detail
