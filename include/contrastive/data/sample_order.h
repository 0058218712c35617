#pragma once

#include <cstdint>

#include "contrastive/core/export.h"

namespace contrastive::data {

/// How far samples are mixed. A window is what a reader touches at a time: `window_blocks` runs of `block_size`
/// consecutive samples. The defaults mix 16,384 samples from 64 places of the set (open_clip's buffer holds 5,000 from
/// a few shards), while a run of 256 photographs of 50 KB is still a read of 12 MB.
struct SampleOrderOptions {
  int64_t block_size = 256;
  int64_t window_blocks = 64;
};

/// The order in which training visits a set: a permutation per epoch that is computed, not stored.
/// Blocks of consecutive samples are permuted over the whole set, consecutive groups of blocks form windows, and the
/// samples of a window are permuted. Where blocks begin moves from epoch to epoch, so that neighbours in a shard do not
/// stay together and the short block, which comes last, is never the same.
/// Thread-safe; O(1) state and time.
class CONTRASTIVE_API SampleOrder {
 public:
  /// Throws: ConfigError if a count is less than 1.
  SampleOrder(uint64_t seed, int64_t num_samples, const SampleOrderOptions& options = {});

  /// The index in [0, num_samples) of sample number `position`, in [0, num_samples), of epoch `epoch`:
  /// a pure function of (seed, epoch, position), and a bijection for each epoch.
  int64_t at(int64_t epoch, int64_t position) const;

  int64_t num_samples() const { return num_samples_; }

 private:
  struct Window {
    int64_t number;
    int64_t begin;  ///< in positions
    int64_t end;
  };

  Window window_of(int64_t position) const;

  uint64_t seed_;
  int64_t num_samples_;
  int64_t block_size_;
  int64_t num_full_blocks_;
  int64_t num_windows_;
  int64_t blocks_per_window_;   ///< of the smaller windows
  int64_t num_larger_windows_;  ///< the first windows hold one block more, so that no window is much smaller
};

}  // namespace contrastive::data
