#pragma once

#include <cmath>
#include <limits>

// What a processor and a GPU compute alike.
#ifdef __CUDACC__
#define CONTRASTIVE_HOST_DEVICE __host__ __device__
#else
#define CONTRASTIVE_HOST_DEVICE
#endif

namespace contrastive::loss::detail {

/// The maximum of no numbers. Finite, so that differences of two of them are numbers.
template <typename T>
constexpr T kLowest = -std::numeric_limits<T>::max();

template <typename T>
CONTRASTIVE_HOST_DEVICE inline T larger_of(T a, T b) {
  return a > b ? a : b;
}

/// The sum of exp(x - reference) over some numbers x.
template <typename T>
struct ExpSum {
  T reference = kLowest<T>;
  T sum = 0;
};

/// The sum over the numbers of both, relative to the larger reference.
template <typename T>
CONTRASTIVE_HOST_DEVICE inline ExpSum<T> merged(const ExpSum<T>& a, const ExpSum<T>& b) {
  const T reference = larger_of(a.reference, b.reference);
  return {reference, a.sum * std::exp(a.reference - reference) + b.sum * std::exp(b.reference - reference)};
}

/// One row's logits without its own pair's: the largest left and right of it, and the sum of their exp.
template <typename T>
struct RowSum {
  T before = kLowest<T>;
  T after = kLowest<T>;
  T sum = 0;
};

/// What a row's sum is relative to: the same shift for all logits if it is finite, else the row's maximum.
template <typename T>
CONTRASTIVE_HOST_DEVICE inline T reference_of(const RowSum<T>& row, T shift) {
  return std::isfinite(shift) ? shift : larger_of(row.before, row.after);
}

template <typename T>
CONTRASTIVE_HOST_DEVICE inline RowSum<T> merged(const RowSum<T>& a, const RowSum<T>& b, T shift) {
  const ExpSum<T> sum = merged(ExpSum<T>{reference_of(a, shift), a.sum}, ExpSum<T>{reference_of(b, shift), b.sum});
  return {larger_of(a.before, b.before), larger_of(a.after, b.after), sum.sum};
}

/// log(1 + exp(x)) without overflow.
template <typename T>
CONTRASTIVE_HOST_DEVICE inline T softplus(T x) {
  return (x < 0 ? T(0) : x) + std::log1p(std::exp(x < 0 ? x : -x));
}

/// 1 / (1 + exp(-x)), exact to the last digits also where it is tiny.
template <typename T>
CONTRASTIVE_HOST_DEVICE inline T sigmoid(T x) {
  const T small = std::exp(x < 0 ? x : -x);
  return (x < 0 ? small : T(1)) / (1 + small);
}

}  // namespace contrastive::loss::detail
