#include "adapt/interval_sweep.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include "contrastive/core/vector_clones.h"

namespace contrastive::adapt::detail {
namespace {

/// In place of slopes of 0: then the reciprocal is finite, and far beyond every value of a grid.
template <typename T>
constexpr T kSmallestSlope = T(1e-30);

/// Inner values at which an image is surely right lie strictly between low and high; where it may be right, between
/// possible_low and possible_high.
template <typename T>
struct Interval {
  T low;
  T high;
  T possible_low;
  T possible_high;
};

/// Classes that are looked at together.
constexpr int64_t kLanes = 16;

/// At a fixed outer value the margin of an image's own class over class c is m0 + inner * m1. It is positive for inner
/// above m0 * reciprocal, where reciprocal = -1 / m1 and m1 is positive (direction 1), below that where m1 is negative
/// (-1), and nowhere looked at where direction is 0. `slack` [C]: how far each bound may be off.
template <typename T>
CONTRASTIVE_INLINE Interval<T> bounds(const T* base, const T* outer, T outer_value, T own, const T* reciprocal,
                                      const T* slack, const T* direction, int64_t count) {
  constexpr T kFar = std::numeric_limits<T>::max();
  T low[kLanes];
  T high[kLanes];
  T possible_low[kLanes];
  T possible_high[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    low[lane] = possible_low[lane] = -kFar;
    high[lane] = possible_high[lane] = kFar;
  }
  const auto see = [&](int64_t c, int64_t lane) __attribute__((always_inline)) {
    const T margin = own - (base[c] + outer_value * outer[c]);
    const T bound = margin * reciprocal[c];
    const T lower = direction[c] > 0 ? bound : -kFar;
    const T upper = direction[c] < 0 ? bound : kFar;
    const T sure_low = lower + slack[c];
    const T sure_high = upper - slack[c];
    const T maybe_low = lower - slack[c];
    const T maybe_high = upper + slack[c];
    low[lane] = sure_low > low[lane] ? sure_low : low[lane];
    high[lane] = sure_high < high[lane] ? sure_high : high[lane];
    possible_low[lane] = maybe_low > possible_low[lane] ? maybe_low : possible_low[lane];
    possible_high[lane] = maybe_high < possible_high[lane] ? maybe_high : possible_high[lane];
  };
  const auto whole = count / kLanes * kLanes;
  for (int64_t begin = 0; begin < whole; begin += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) see(begin + lane, lane);
  }
  for (int64_t c = whole; c < count; ++c) see(c, c - whole);
  return {*std::max_element(low, low + kLanes), *std::min_element(high, high + kLanes),
          *std::max_element(possible_low, possible_low + kLanes),
          *std::min_element(possible_high, possible_high + kLanes)};
}
CONTRASTIVE_VECTOR_CLONES Interval<float> find_bounds(const float* base, const float* outer, float outer_value,
                                                      float own, const float* reciprocal, const float* slack,
                                                      const float* direction, int64_t count) {
  return bounds(base, outer, outer_value, own, reciprocal, slack, direction, count);
}
CONTRASTIVE_VECTOR_CLONES Interval<double> find_bounds(const double* base, const double* outer, double outer_value,
                                                       double own, const double* reciprocal, const double* slack,
                                                       const double* direction, int64_t count) {
  return bounds(base, outer, outer_value, own, reciprocal, slack, direction, count);
}

/// One image's terms. Missing ones are zeros.
template <typename T>
struct Image {
  const T* base;
  const T* outer;
  const T* inner;
  int64_t num_classes;
  int64_t label;

  /// What decides in doubt: the score of a class, rounded after every operation as tensors are.
  T score(int64_t c, T outer_value, T inner_value) const {
    const T first = outer[c] * outer_value;
    const T second = inner[c] * inner_value;
    return (base[c] + first) + second;
  }

  bool is_right(T outer_value, T inner_value) const {
    const T own = score(label, outer_value, inner_value);
    if (std::isnan(own)) return false;
    for (int64_t c = 0; c < num_classes; ++c) {
      const T other = score(c, outer_value, inner_value);
      if (other > own || (other == own && c < label)) return false;
    }
    return true;
  }
};

/// Sweeps the images of one thread.
template <typename T>
class Sweep {
 public:
  Sweep(const std::vector<double>& outer_values, const std::vector<double>& inner_values, int64_t num_classes)
      : outer_values_(outer_values.begin(), outer_values.end()),
        inner_values_(inner_values.begin(), inner_values.end()),
        reciprocal_(static_cast<size_t>(num_classes)),
        slack_(static_cast<size_t>(num_classes)),
        direction_(static_cast<size_t>(num_classes)),
        correct_(outer_values.size() * inner_values.size()) {
    for (const auto value : outer_values_) largest_outer_ = std::max(largest_outer_, std::abs(value));
    for (const auto value : inner_values_) largest_inner_ = std::max(largest_inner_, std::abs(value));
  }

  void add(const Image<T>& image) {
    const bool is_regular = prepare(image);
    for (size_t o = 0; o < outer_values_.size(); ++o) {
      auto* counts = correct_.data() + o * inner_values_.size();
      if (is_regular) {
        add_interval(image, outer_values_[o], counts);
      } else {
        for (size_t i = 0; i < inner_values_.size(); ++i)
          counts[i] += image.is_right(outer_values_[o], inner_values_[i]);
      }
    }
  }

  const std::vector<int64_t>& correct() const { return correct_; }

 private:
  /// What doesn't depend on the outer value. False if a number is too large, or none, for bounds to be trusted.
  bool prepare(const Image<T>& image) {
    constexpr T kEpsilon = std::numeric_limits<T>::epsilon();
    T largest = 0;
    for (int64_t c = 0; c < image.num_classes; ++c) {
      const T size = std::abs(image.base[c]) + largest_outer_ * std::abs(image.outer[c]) +
                     largest_inner_ * std::abs(image.inner[c]);
      if (!(size < T(1e15))) return false;
      largest = std::max(largest, size);
    }
    const T tolerance = 16 * kEpsilon * largest;
    const T own = image.inner[image.label];
    for (int64_t c = 0; c < image.num_classes; ++c) {
      T slope = own - image.inner[c];
      if (std::abs(slope) < kSmallestSlope<T>) slope = kSmallestSlope<T>;
      const auto at = static_cast<size_t>(c);
      reciprocal_[at] = -1 / slope;
      direction_[at] = slope > 0 ? T(1) : T(-1);
      slack_[at] = tolerance * std::abs(reciprocal_[at]) + 8 * kEpsilon * largest_inner_;
    }
    direction_[static_cast<size_t>(image.label)] = 0;
    slack_[static_cast<size_t>(image.label)] = 0;
    return true;
  }

  void add_interval(const Image<T>& image, T outer_value, int64_t* counts) {
    const T own = image.base[image.label] + outer_value * image.outer[image.label];
    const auto [low, high, possible_low, possible_high] =
        find_bounds(image.base, image.outer, outer_value, own, reciprocal_.data(), slack_.data(), direction_.data(),
                    image.num_classes);
    if (!(possible_low <= possible_high)) return;
    const auto first = std::lower_bound(inner_values_.begin(), inner_values_.end(), possible_low);
    const auto last = std::upper_bound(first, inner_values_.end(), possible_high);
    for (auto value = first; value != last; ++value) {
      const bool is_sure = *value > low && *value < high;
      counts[value - inner_values_.begin()] += is_sure || image.is_right(outer_value, *value);
    }
  }

  std::vector<T> outer_values_;
  std::vector<T> inner_values_;
  T largest_outer_ = 0;
  T largest_inner_ = 0;
  std::vector<T> reciprocal_;
  std::vector<T> slack_;
  std::vector<T> direction_;
  std::vector<int64_t> correct_;
};

torch::Tensor defined_or_zeros(const torch::Tensor& term, const torch::Tensor& like) {
  return term.defined() ? term.contiguous() : at::zeros_like(like);
}

}  // namespace

void count_correct(const ScoreTerms& terms, const torch::Tensor& labels, const std::vector<double>& outer_values,
                   const std::vector<double>& inner_values, torch::Tensor& correct) {
  const auto base = terms.base.contiguous();
  const auto outer = defined_or_zeros(terms.outer, base);
  const auto inner = defined_or_zeros(terms.inner, base);
  const auto num_classes = base.size(1);
  const auto* label = labels.const_data_ptr<int64_t>();
  auto* total = correct.mutable_data_ptr<int64_t>();
  std::mutex mutex;
  AT_DISPATCH_FLOATING_TYPES(base.scalar_type(), "count_correct", [&] {
    const auto* first = base.const_data_ptr<scalar_t>();
    const auto* second = outer.const_data_ptr<scalar_t>();
    const auto* third = inner.const_data_ptr<scalar_t>();
    at::parallel_for(0, base.size(0), 1, [&](int64_t begin, int64_t end) {
      Sweep<scalar_t> sweep(outer_values, inner_values, num_classes);
      for (int64_t i = begin; i < end; ++i) {
        const auto at = i * num_classes;
        sweep.add({first + at, second + at, third + at, num_classes, label[i]});
      }
      const std::lock_guard lock(mutex);
      for (size_t i = 0; i < sweep.correct().size(); ++i) total[i] += sweep.correct()[i];
    });
  });
}

}  // namespace contrastive::adapt::detail
