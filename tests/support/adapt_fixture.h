#pragma once

#include <cstdint>

#include <ATen/ATen.h>

namespace contrastive::test {

/// Made-up features of images and class texts that have a common direction, as CLIP's do; the same on every machine.
struct AdaptFixture {
  torch::Tensor weights;  ///< [C, D] fp64, L2-normalised
  torch::Tensor keys;     ///< [C * K, D], class after class
  torch::Tensor labels;   ///< [C * K] int64
  torch::Tensor queries;  ///< [N, D]
  torch::Tensor targets;  ///< [N] int64
};

/// Uniform in [-1, 1), from the 53 high bits of SplitMix64's first output. [n, d] fp64
inline torch::Tensor adapt_field(uint64_t seed, int64_t n, int64_t d) {
  auto field = at::empty({n, d}, at::kDouble);
  auto* values = field.data_ptr<double>();
  for (int64_t k = 0; k < n * d; ++k) {
    uint64_t z = (seed << 32) + static_cast<uint64_t>(k) + 0x9E3779B97F4A7C15ULL;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    z ^= z >> 31;
    values[k] = 2 * (static_cast<double>(z >> 11) / 9007199254740992.0) - 1;
  }
  return field;
}

inline torch::Tensor adapt_normalized(const torch::Tensor& rows) {
  return rows / rows.norm(2, 1, /*keepdim=*/true);
}

inline AdaptFixture adapt_fixture(uint64_t s, int64_t d, int64_t c, int64_t k, int64_t n) {
  AdaptFixture f;
  f.weights = adapt_normalized(adapt_field(s, c, d) + 0.8 * adapt_field(s + 1, 1, d));
  f.labels = at::arange(c, at::kLong).repeat_interleave(k);
  const auto common = adapt_normalized(adapt_field(s + 3, 1, d));
  f.keys = adapt_normalized(0.6 * f.weights.index_select(0, f.labels) +
                            0.5 * adapt_normalized(adapt_field(s + 2, c * k, d)) + 0.5 * common);
  f.targets = at::arange(n, at::kLong) % c;
  f.queries = adapt_normalized(0.35 * f.weights.index_select(0, f.targets) +
                               0.8 * adapt_normalized(adapt_field(s + 4, n, d)) + 0.5 * common);
  return f;
}

inline AdaptFixture adapt_fixture_f1() {
  return adapt_fixture(11, 16, 5, 3, 7);
}
inline AdaptFixture adapt_fixture_f2() {
  return adapt_fixture(36, 24, 6, 4, 12);
}

}  // namespace contrastive::test
