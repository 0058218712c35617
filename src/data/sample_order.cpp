#include "contrastive/data/sample_order.h"

#include <algorithm>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/random.h"

namespace contrastive::data {
namespace {

void require_positive(int64_t value, const char* name) {
  if (value < 1) throw ConfigError(fmt::format("[sample_order] {} must be at least 1, but is {}", name, value));
}

}  // namespace

SampleOrder::SampleOrder(uint64_t seed, int64_t num_samples, const SampleOrderOptions& options)
    : seed_(seed), num_samples_(num_samples), block_size_(options.block_size) {
  require_positive(num_samples, "num_samples");
  require_positive(options.block_size, "block_size");
  require_positive(options.window_blocks, "window_blocks");
  num_full_blocks_ = num_samples / block_size_;
  const int64_t num_blocks = num_full_blocks_ + (num_samples % block_size_ != 0);
  num_windows_ = (num_blocks - 1) / options.window_blocks + 1;
  blocks_per_window_ = num_blocks / num_windows_;
  num_larger_windows_ = num_blocks % num_windows_;
}

SampleOrder::Window SampleOrder::window_of(int64_t position) const {
  const int64_t block = position / block_size_;
  const int64_t num_blocks_in_larger = num_larger_windows_ * (blocks_per_window_ + 1);
  const int64_t number = block < num_blocks_in_larger
                             ? block / (blocks_per_window_ + 1)
                             : num_larger_windows_ + (block - num_blocks_in_larger) / blocks_per_window_;
  const auto first_block = [&](int64_t window) {
    return window * blocks_per_window_ + std::min(window, num_larger_windows_);
  };
  const int64_t end = number + 1 == num_windows_ ? num_samples_ : first_block(number + 1) * block_size_;
  return {number, first_block(number) * block_size_, end};
}

int64_t SampleOrder::at(int64_t epoch, int64_t position) const {
  CONTRASTIVE_INTERNAL_ASSERT(epoch >= 0 && position >= 0 && position < num_samples_);
  RandomStream of_epoch(seed_, RandomPurpose::shard_order, {epoch});
  const uint64_t block_key = of_epoch.next();
  const int64_t rotation = of_epoch.below(num_samples_);

  const Window window = window_of(position);
  RandomStream of_window(seed_, RandomPurpose::window_order, {epoch, window.number});
  const Permutation within_window(of_window.next(), window.end - window.begin);
  const int64_t mixed = window.begin + within_window(position - window.begin);

  int64_t block = mixed / block_size_;
  if (block < num_full_blocks_) block = Permutation(block_key, num_full_blocks_)(block);
  const int64_t index = block * block_size_ + mixed % block_size_;
  const int64_t samples_before_wrap = num_samples_ - rotation;
  return index < samples_before_wrap ? index + rotation : index - samples_before_wrap;
}

}  // namespace contrastive::data
