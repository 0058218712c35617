#include "contrastive/core/random.h"

#include <bit>

#include "contrastive/core/error.h"

namespace contrastive {
namespace {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15;

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a bijection with full avalanche.
uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EB;
  return value ^ (value >> 31);
}

}  // namespace

RandomStream::RandomStream(uint64_t seed, RandomPurpose purpose, std::initializer_list<int64_t> counters)
    : state_(mix(mix(seed + kGolden) + static_cast<uint64_t>(purpose) * kGolden)) {
  for (const int64_t counter : counters) state_ = mix(state_ + kGolden) ^ mix(static_cast<uint64_t>(counter) + kGolden);
  state_ = mix(state_);
}

uint64_t RandomStream::next() {
  return mix(state_ += kGolden);
}

double RandomStream::uniform() {
  return static_cast<double>(next() >> 11) * 0x1p-53;
}

int64_t RandomStream::below(int64_t count) {
  CONTRASTIVE_INTERNAL_ASSERT(count >= 1);
  const auto range = static_cast<uint64_t>(count);
  const uint64_t unbiased_end = UINT64_MAX - UINT64_MAX % range;  // largest multiple of `range` that fits
  uint64_t value = next();
  while (value >= unbiased_end) value = next();
  return static_cast<int64_t>(value % range);
}

Permutation::Permutation(uint64_t key, int64_t size) : size_(size) {
  CONTRASTIVE_INTERNAL_ASSERT(size >= 1);
  for (auto& round_key : round_keys_) round_key = mix(key += kGolden);
  const int bits = std::bit_width(static_cast<uint64_t>(size - 1));
  half_bits_ = (bits + 1) / 2;
}

uint64_t Permutation::encrypt(uint64_t value) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = value >> half_bits_;
  uint64_t right = value & mask;
  for (const uint64_t round_key : round_keys_) {
    const uint64_t next_right = left ^ (mix(right + round_key) & mask);
    left = right;
    right = next_right;
  }
  return (left << half_bits_) | right;
}

int64_t Permutation::operator()(int64_t index) const {
  CONTRASTIVE_INTERNAL_ASSERT(index >= 0 && index < size_);
  // The network permutes [0, 4^half_bits); walking its cycle until inside [0, size) permutes that (at most 4 steps on
  // average, since the range is less than four times the size).
  auto value = static_cast<uint64_t>(index);
  do {
    value = encrypt(value);
  } while (value >= static_cast<uint64_t>(size_));
  return static_cast<int64_t>(value);
}

}  // namespace contrastive
