#pragma once

#include <cstdint>
#include <initializer_list>

#include "contrastive/core/export.h"

namespace contrastive {

/// Keeps the draws of different kinds apart: a stream is keyed by (seed, purpose, counters...).
enum class RandomPurpose : uint64_t {
  shard_order = 1,
  window_order,
  crop,
  caption,
  scene,
  model,
  view,       ///< which of a sample's cached views a step sees
  view_crop,  ///< the crop that a cached view is
  few_shot,   ///< which samples of a class a few-shot evaluation learns from
};

/// A stream of random numbers that is a pure function of its key: nothing to save, nothing to restore, the same on
/// every machine. Draw number n is a bijective 64-bit mix (SplitMix64) of key + n.
class CONTRASTIVE_API RandomStream {
 public:
  RandomStream(uint64_t seed, RandomPurpose purpose, std::initializer_list<int64_t> counters);

  /// Uniform over all 64-bit values.
  uint64_t next();

  /// Uniform in [0, 1), 53 bits.
  double uniform();

  /// Uniform in [low, high).
  double uniform(double low, double high) { return low + (high - low) * uniform(); }

  /// Uniform integer in [0, count), without bias. count >= 1.
  int64_t below(int64_t count);

 private:
  uint64_t state_;
};

/// A pseudo-random permutation of [0, size) evaluated at single points: O(1) state, no table.
/// Source: balanced Feistel network with cycle walking (Black and Rogaway, 2002).
class CONTRASTIVE_API Permutation {
 public:
  /// size >= 1. Equal (key, size) give equal permutations.
  Permutation(uint64_t key, int64_t size);

  int64_t operator()(int64_t index) const;
  int64_t size() const { return size_; }

 private:
  uint64_t encrypt(uint64_t value) const;

  static constexpr int kRounds = 6;
  uint64_t round_keys_[kRounds];
  int64_t size_;
  int half_bits_;
};

}  // namespace contrastive
