#include "adapt/cache_scores.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include "contrastive/core/vector_clones.h"
#include "contrastive/ops/vector_math.h"

namespace contrastive::adapt::detail {
namespace {

/// Betas that one exponential starts; the next ones follow by a product.
constexpr int64_t kLanes = 16;
/// Classes whose results are turned together, so that whole cache lines are written.
constexpr int64_t kClasses = 16;
/// Sets of weights that are applied at a time.
constexpr int64_t kWeightLanes = 8;
/// Bytes of the results of one pass over the affinities.
constexpr int64_t kMaxSweepBytes = int64_t{64} << 20;

template <typename T>
CONTRASTIVE_INLINE void powers(const T* affinity, int64_t count, T beta, T* out) {
  for (int64_t j = 0; j < count; ++j) out[j] = ops::detail::exponential(-beta * (T(1) - affinity[j]));
}
CONTRASTIVE_VECTOR_CLONES void all_powers(const float* affinity, int64_t count, float beta, float* out) {
  powers(affinity, count, beta, out);
}
CONTRASTIVE_VECTOR_CLONES void all_powers(const double* affinity, int64_t count, double beta, double* out) {
  powers(affinity, count, beta, out);
}

/// Adds the weighted keys of one class up. weights [count, kWeightLanes]
template <typename T>
CONTRASTIVE_INLINE void add_weighted(const T* values, const T* weights, int64_t count, T* sums) {
  T lanes[kWeightLanes] = {};
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t lane = 0; lane < kWeightLanes; ++lane) lanes[lane] += values[j] * weights[j * kWeightLanes + lane];
  }
  std::copy(lanes, lanes + kWeightLanes, sums);
}
CONTRASTIVE_VECTOR_CLONES void add_weighted_class(const float* values, const float* weights, int64_t count,
                                                  float* sums) {
  add_weighted(values, weights, count, sums);
}
CONTRASTIVE_VECTOR_CLONES void add_weighted_class(const double* values, const double* weights, int64_t count,
                                                  double* sums) {
  add_weighted(values, weights, count, sums);
}

/// Adds the keys of one class up for `blocks` * kLanes betas first, first + step, ...
template <typename T>
CONTRASTIVE_INLINE void add_keys(const T* affinity, int64_t count, T first, T step, int64_t blocks, T* sums) {
  T beta[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) beta[lane] = first + static_cast<T>(lane) * step;
  const T block_step = static_cast<T>(kLanes) * step;
  std::fill(sums, sums + blocks * kLanes, T(0));
  for (int64_t j = 0; j < count; ++j) {
    const T distance = T(1) - affinity[j];
    const T factor = ops::detail::exponential(-block_step * distance);
    T value[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) value[lane] = ops::detail::exponential(-beta[lane] * distance);
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        sums[block * kLanes + lane] += value[lane];
        value[lane] *= factor;
      }
    }
  }
}
CONTRASTIVE_VECTOR_CLONES void add_class(const float* affinity, int64_t count, float first, float step, int64_t blocks,
                                         float* sums) {
  add_keys(affinity, count, first, step, blocks, sums);
}
CONTRASTIVE_VECTOR_CLONES void add_class(const double* affinity, int64_t count, double first, double step,
                                         int64_t blocks, double* sums) {
  add_keys(affinity, count, first, step, blocks, sums);
}

/// Betas [begin, end) of one image's row, written to out[(beta - begin) * stride + class].
template <typename T>
void sweep_row(const T* affinity, const int64_t* offsets, int64_t num_classes, T first, T step, int64_t count, T* out,
               int64_t stride, std::vector<T>& scratch) {
  const auto blocks = (count + kLanes - 1) / kLanes;
  const auto padded = blocks * kLanes;
  scratch.resize(static_cast<size_t>(kClasses * padded));
  for (int64_t begin = 0; begin < num_classes; begin += kClasses) {
    const auto end = std::min(num_classes, begin + kClasses);
    for (int64_t c = begin; c < end; ++c) {
      add_class(affinity + offsets[c], offsets[c + 1] - offsets[c], first, step, blocks,
                scratch.data() + (c - begin) * padded);
    }
    for (int64_t b = 0; b < count; ++b) {
      for (int64_t c = begin; c < end; ++c) {
        out[b * stride + c] = scratch[static_cast<size_t>((c - begin) * padded + b)];
      }
    }
  }
}

torch::Tensor labels_of(const torch::Tensor& offsets, torch::Device device) {
  return at::repeat_interleave(offsets.diff()).to(device);
}

/// On any device.
torch::Tensor general_scores(const torch::Tensor& affinities, const torch::Tensor& offsets, double beta,
                             const torch::Tensor& weights) {
  auto values = ((affinities - 1) * beta).exp_();
  if (weights.defined()) values *= weights;
  auto scores = at::zeros({affinities.size(0), offsets.size(0) - 1}, affinities.options());
  return scores.index_add_(1, labels_of(offsets, affinities.device()), values);
}

bool has_equal_steps(const std::vector<double>& betas) {
  const auto step = betas.size() > 1 ? betas[1] - betas[0] : 0;
  for (size_t i = 1; i < betas.size(); ++i) {
    if (std::abs(betas[i] - betas[0] - static_cast<double>(i) * step) > 1e-9 * std::abs(betas[i])) return false;
  }
  return betas.front() >= 0 && step >= 0;
}

}  // namespace

torch::Tensor cache_scores(const torch::Tensor& affinities, const torch::Tensor& offsets, double beta) {
  if (!affinities.device().is_cpu()) return general_scores(affinities, offsets, beta, {});
  const auto rows = affinities.contiguous();
  const auto num_classes = offsets.size(0) - 1;
  auto scores = at::empty({rows.size(0), num_classes}, rows.options());
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "cache_scores", [&] {
    const auto* first = rows.const_data_ptr<scalar_t>();
    const auto* begins = offsets.const_data_ptr<int64_t>();
    auto* out = scores.mutable_data_ptr<scalar_t>();
    const auto keys = rows.size(1);
    at::parallel_for(0, rows.size(0), 1, [&](int64_t begin, int64_t end) {
      std::vector<scalar_t> values(static_cast<size_t>(keys));
      for (int64_t i = begin; i < end; ++i) {
        all_powers(first + i * keys, keys, static_cast<scalar_t>(beta), values.data());
        for (int64_t c = 0; c < num_classes; ++c) {
          scalar_t sum = 0;
          for (int64_t j = begins[c]; j < begins[c + 1]; ++j) sum += values[static_cast<size_t>(j)];
          out[i * num_classes + c] = sum;
        }
      }
    });
  });
  return scores;
}

torch::Tensor weighted_cache_scores(const torch::Tensor& affinities, const torch::Tensor& offsets, double beta,
                                    const torch::Tensor& weights) {
  const auto num_sets = weights.size(0), num_keys = affinities.size(1), num_classes = offsets.size(0) - 1;
  if (!affinities.device().is_cpu()) {
    std::vector<torch::Tensor> scores;
    for (const auto& own : weights.unbind()) scores.push_back(general_scores(affinities, offsets, beta, own));
    return at::stack(scores);
  }
  const auto rows = affinities.contiguous();
  const auto blocks = (num_sets + kWeightLanes - 1) / kWeightLanes;
  const auto padded = at::constant_pad_nd(weights, {0, 0, 0, blocks * kWeightLanes - num_sets});
  const auto lanes = padded.view({blocks, kWeightLanes, num_keys}).transpose(1, 2).contiguous();  // [blocks, M, lanes]
  auto scores = at::empty({num_sets, rows.size(0), num_classes}, rows.options());
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "weighted_cache_scores", [&] {
    const auto* first = rows.const_data_ptr<scalar_t>();
    const auto* factors = lanes.const_data_ptr<scalar_t>();
    const auto* begins = offsets.const_data_ptr<int64_t>();
    auto* out = scores.mutable_data_ptr<scalar_t>();
    const auto num_rows = rows.size(0);
    at::parallel_for(0, num_rows, 1, [&](int64_t begin, int64_t end) {
      std::vector<scalar_t> values(static_cast<size_t>(num_keys));
      scalar_t sums[kWeightLanes];
      for (int64_t i = begin; i < end; ++i) {
        all_powers(first + i * num_keys, num_keys, static_cast<scalar_t>(beta), values.data());
        for (int64_t set = 0; set < num_sets; set += kWeightLanes) {
          const auto* own = factors + set * num_keys;
          const auto count = std::min(kWeightLanes, num_sets - set);
          for (int64_t c = 0; c < num_classes; ++c) {
            add_weighted_class(values.data() + begins[c], own + begins[c] * kWeightLanes, begins[c + 1] - begins[c],
                               sums);
            for (int64_t k = 0; k < count; ++k) out[((set + k) * num_rows + i) * num_classes + c] = sums[k];
          }
        }
      }
    });
  });
  return scores;
}

void sweep_cache_scores(const torch::Tensor& affinities, const torch::Tensor& offsets, const std::vector<double>& betas,
                        const std::function<void(int64_t number, const torch::Tensor& scores)>& use) {
  if (betas.empty()) return;
  const auto total = static_cast<int64_t>(betas.size());
  if (!affinities.device().is_cpu() || !has_equal_steps(betas)) {
    for (int64_t b = 0; b < total; ++b) use(b, cache_scores(affinities, offsets, betas[static_cast<size_t>(b)]));
    return;
  }
  const auto rows = affinities.contiguous();
  const auto num_classes = offsets.size(0) - 1;
  const auto step = total > 1 ? betas[1] - betas[0] : 0;
  const auto bytes_a_beta = std::max<int64_t>(1, rows.size(0) * num_classes * rows.element_size());
  // Whole blocks, so that a beta's value doesn't depend on the number of images.
  const auto part = std::max(kLanes, kMaxSweepBytes / bytes_a_beta / kLanes * kLanes);
  for (int64_t from = 0; from < total; from += part) {
    const auto count = std::min(part, total - from);
    auto scores = at::empty({count, rows.size(0), num_classes}, rows.options());
    AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "sweep_cache_scores", [&] {
      const auto* first = rows.const_data_ptr<scalar_t>();
      const auto* begins = offsets.const_data_ptr<int64_t>();
      auto* out = scores.mutable_data_ptr<scalar_t>();
      const auto stride = rows.size(0) * num_classes;
      at::parallel_for(0, rows.size(0), 1, [&](int64_t begin, int64_t end) {
        std::vector<scalar_t> scratch;
        for (int64_t i = begin; i < end; ++i) {
          sweep_row(first + i * rows.size(1), begins, num_classes,
                    static_cast<scalar_t>(betas[static_cast<size_t>(from)]), static_cast<scalar_t>(step), count,
                    out + i * num_classes, stride, scratch);
        }
      });
    });
    for (int64_t b = 0; b < count; ++b) use(from + b, scores[b]);
  }
}

}  // namespace contrastive::adapt::detail
