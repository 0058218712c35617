#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include <c10/util/BFloat16.h>

#include "contrastive/core/vector_clones.h"

/// Numbers as the loops of our CPU kernels load, compute and store them.
namespace contrastive::ops::detail {

/// What numbers stored as T are computed in.
template <typename T>
struct ComputeType {
  using Type = float;
};
template <>
struct ComputeType<double> {
  using Type = double;
};
template <typename T>
using Compute = typename ComputeType<T>::Type;

CONTRASTIVE_INLINE float load(float value) {
  return value;
}
CONTRASTIVE_INLINE double load(double value) {
  return value;
}
CONTRASTIVE_INLINE float load(c10::BFloat16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.x) << 16);
}

CONTRASTIVE_INLINE void store(float& place, float value) {
  place = value;
}
CONTRASTIVE_INLINE void store(double& place, double value) {
  place = value;
}
/// Rounds to the nearest, ties to even; NaN stays NaN.
CONTRASTIVE_INLINE void store(c10::BFloat16& place, float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16;
  place.x = static_cast<uint16_t>(value != value ? 0x7FC0U : rounded);
}

/// exp, to 2 units in the last place; 0 below -87.3 (where results are subnormal), e^88.3 above 88.3.
/// Source: reduction by log 2 in two parts and the polynomial of Cephes' expf.
CONTRASTIVE_INLINE float exponential(float x) {
  constexpr float kLog2E = 1.44269504F, kLn2High = 0.693359375F, kLn2Low = -2.12194440e-4F;
  constexpr float kSmallest = -87.3F, kLargest = 88.3F;
  constexpr float kRounder = 12582912.0F;  // 1.5 * 2^23: a sum with it is rounded to an integer, its low bits
  const float bounded = std::min(std::max(x, kSmallest), kLargest);
  const float shifted = bounded * kLog2E + kRounder;
  const float n = shifted - kRounder;
  const float r = (bounded - n * kLn2High) - n * kLn2Low;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  const float value = p * r * r + r + 1.0F;
  const float power = std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) + 127U) << 23);
  return x < kSmallest ? 0.0F : value * power;
}
CONTRASTIVE_INLINE double exponential(double x) {
  return std::exp(x);
}

/// erf, to 3e-7. Source: a rational approximation of degree 13 / 8 on [-4, 4], as in Eigen's generic_fast_erf.
CONTRASTIVE_INLINE float error_function(float x) {
  const float bounded = std::min(std::max(x, -4.0F), 4.0F);
  const float s = bounded * bounded;
  float p = -2.72614225801306e-10F;
  p = p * s + 2.77068142495902e-08F;
  p = p * s - 2.10102402082508e-06F;
  p = p * s - 5.69250639462346e-05F;
  p = p * s - 7.34990630326855e-04F;
  p = p * s - 2.95459980854025e-03F;
  p = p * s - 1.60960333262415e-02F;
  float q = -1.45660718464996e-05F;
  q = q * s - 2.13374055278905e-04F;
  q = q * s - 1.68282697438203e-03F;
  q = q * s - 7.37332916720468e-03F;
  q = q * s - 1.42647390514189e-02F;
  return bounded * p / q;
}
CONTRASTIVE_INLINE double error_function(double x) {
  return std::erf(x);
}

}  // namespace contrastive::ops::detail
