#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "contrastive/core/vector_clones.h"

#include "loss/tile_math.h"

// Functions over 64 bytes of numbers at once, in as many registers as the processor needs for them. They are inlined
// into functions marked CONTRASTIVE_VECTOR_CLONES.
namespace contrastive::loss::detail {

template <typename T>
struct LaneInteger;
template <>
struct LaneInteger<float> {
  using type = int32_t;
};
template <>
struct LaneInteger<double> {
  using type = int64_t;
};

template <typename T>
struct Lanes {
  typedef T Vector __attribute__((vector_size(64)));
  typedef T InMemory __attribute__((vector_size(64), aligned(sizeof(T)), may_alias));
  typedef typename LaneInteger<T>::type Integers __attribute__((vector_size(64)));
  static constexpr int64_t kCount = 64 / sizeof(T);
};

template <typename T>
CONTRASTIVE_INLINE void set_all(typename Lanes<T>::Vector& x, T value) {
  x = value - typename Lanes<T>::Vector{};
}

/// Reads `count` numbers; lanes without one are 0.
template <typename T>
CONTRASTIVE_INLINE void load(typename Lanes<T>::Vector& x, const T* place, int64_t count) {
  if (count >= Lanes<T>::kCount) {
    x = *reinterpret_cast<const typename Lanes<T>::InMemory*>(place);
  } else {
    x = typename Lanes<T>::Vector{};
    std::memcpy(&x, place, static_cast<size_t>(count) * sizeof(T));
  }
}

template <typename T>
CONTRASTIVE_INLINE void store(T* place, const typename Lanes<T>::Vector& x, int64_t count) {
  if (count >= Lanes<T>::kCount) {
    *reinterpret_cast<typename Lanes<T>::InMemory*>(place) = x;
  } else {
    std::memcpy(place, &x, static_cast<size_t>(count) * sizeof(T));
  }
}

/// Sets the lanes from `count` on.
template <typename T>
CONTRASTIVE_INLINE void fill_from(typename Lanes<T>::Vector& x, int64_t count, T value) {
  for (int64_t i = count; i < Lanes<T>::kCount; ++i) x[i] = value;
}

template <typename T>
CONTRASTIVE_INLINE void take_larger(typename Lanes<T>::Vector& x, const typename Lanes<T>::Vector& y) {
  x = y > x ? y : x;
}

template <typename T>
CONTRASTIVE_INLINE T largest_of(const typename Lanes<T>::Vector& x) {
  T result = x[0];
  for (int64_t i = 1; i < Lanes<T>::kCount; ++i) result = larger_of(result, x[i]);
  return result;
}

template <typename T>
CONTRASTIVE_INLINE T sum_of(const typename Lanes<T>::Vector& x) {
  T result = 0;
  for (int64_t i = 0; i < Lanes<T>::kCount; ++i) result += x[i];
  return result;
}

/// x = exp(x) for x up to 88; 0 below -87. Error: 2 units in the last place.
/// Source: the reduction and the polynomial are those of Cephes' expf.
CONTRASTIVE_INLINE void exp_in_place(Lanes<float>::Vector& x) {
  using Vector = Lanes<float>::Vector;
  using Integers = Lanes<float>::Integers;
  constexpr float kRounder = 12582912.0F;  // 1.5 * 2^23: a sum with it is rounded to an integer, its low bits
  const Vector rounded = x * 1.44269504F + kRounder;
  const Vector n = rounded - kRounder;
  const Vector r = (x - n * 0.693359375F) - n * -2.12194440e-4F;
  Vector p = r * 1.9875691500e-4F + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  const Integers exponent = (reinterpret_cast<Integers>(rounded) + 127) << 23;
  p *= reinterpret_cast<Vector>(exponent);
  x = x < -87.0F ? Vector{} : p;
}

CONTRASTIVE_INLINE void exp_in_place(Lanes<double>::Vector& x) {
  for (int64_t i = 0; i < Lanes<double>::kCount; ++i) x[i] = std::exp(x[i]);
}

/// x = log(1 + x) for x in [0, 1], exact to the last digits also where it is tiny: 2 atanh(x / (2 + x)) as a series.
CONTRASTIVE_INLINE void log1p_in_place(Lanes<float>::Vector& x) {
  using Vector = Lanes<float>::Vector;
  const Vector q = x / (x + 2.0F);
  const Vector square = q * q;
  Vector p = square * (2.0F / 13) + (2.0F / 11);
  p = p * square + (2.0F / 9);
  p = p * square + (2.0F / 7);
  p = p * square + (2.0F / 5);
  p = p * square + (2.0F / 3);
  x = p * square * q + q * 2.0F;
}

CONTRASTIVE_INLINE void log1p_in_place(Lanes<double>::Vector& x) {
  for (int64_t i = 0; i < Lanes<double>::kCount; ++i) x[i] = std::log1p(x[i]);
}

}  // namespace contrastive::loss::detail
