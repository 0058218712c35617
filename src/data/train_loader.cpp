#include "contrastive/data/train_loader.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <optional>
#include <set>
#include <span>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/log.h"
#include "contrastive/core/random.h"
#include "contrastive/data/sample_order.h"

#include "batch_workers.h"
#include "sample_faults.h"

namespace contrastive::data {
namespace {

/// A set where this many substitutes in a row are bad is broken as a whole.
constexpr int64_t kMaxSubstitutes = 100;

using detail::Fault;

struct BadSample {
  int64_t item = 0;
  int64_t attempt = 0;
  int64_t index = 0;
  Fault fault;
};

/// Where a sample stands in the endless sequence of epochs.
struct Place {
  int64_t epoch = 0;
  int64_t position = 0;
};

/// "1,203" for 1203.
std::string with_commas(int64_t count) {
  if (count < 1000) return std::to_string(count);
  return fmt::format("{},{:03}", with_commas(count / 1000), count % 1000);
}

/// Memory of a batch's images that comes back when the last tensor over it is gone: fresh pages cost more than copying
/// them would.
class PixelPool : public std::enable_shared_from_this<PixelPool> {
 public:
  PixelPool(size_t bytes, size_t max_idle) : bytes_(bytes), max_idle_(max_idle) { idle_.reserve(max_idle); }

  at::Tensor tensor(at::IntArrayRef sizes, at::ScalarType dtype) {
    const auto give_back = [pool = shared_from_this()](void* memory) { pool->give_back(memory); };
    return at::from_blob(take(), sizes, give_back, dtype);
  }

  ~PixelPool() {
    for (void* memory : idle_) std::free(memory);
  }

 private:
  void* take() {
    {
      const std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        void* memory = idle_.back();
        idle_.pop_back();
        return memory;
      }
    }
    constexpr size_t kAlignment = 64;
    void* memory = std::aligned_alloc(kAlignment, (bytes_ + kAlignment - 1) / kAlignment * kAlignment);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
  }

  void give_back(void* memory) {
    const std::lock_guard lock(mutex_);
    if (idle_.size() < max_idle_) {
      idle_.push_back(memory);
    } else {
      std::free(memory);
    }
  }

  const size_t bytes_;
  const size_t max_idle_;
  std::mutex mutex_;
  std::vector<void*> idle_;
};

void require_range(const char* name, int64_t value, int64_t minimum, int64_t maximum) {
  if (value >= minimum && value <= maximum) return;
  throw ConfigError(fmt::format("[train_loader] {} must be in [{}, {}], but is {}", name, minimum, maximum, value));
}

void check(const TrainLoaderOptions& options) {
  require_range("world_size", options.world_size, 1, 1 << 20);
  require_range("rank", options.rank, 0, options.world_size - 1);
  require_range("batch_size", options.batch_size, 1, 1 << 24);
  require_range("image_size", options.image_size, 1, 1 << 13);
  require_range("feature_width", options.feature_width, 0, 1 << 16);
  require_range("context_length", options.context_length, 2, 1 << 16);
  require_range("workers", options.workers, 1, 1 << 10);
  require_range("prefetch_batches", options.prefetch_batches, 0, 1 << 10);
  require_range("max_bad_samples", options.max_bad_samples, 0, int64_t{1} << 32);
  require_range("first_step", options.first_step, 0, int64_t{1} << 36);
  if (options.batch_size % options.world_size != 0) {
    throw ConfigError(fmt::format("[train_loader] batch_size must be a multiple of world_size ({}), but is {}",
                                  options.world_size, options.batch_size));
  }
  const bool takes_whole_images = options.feature_width == 0 && options.crop.kind == image::TrainCrop::none;
  if (takes_whole_images && options.crop.evaluation.size != options.image_size) {
    throw ConfigError(
        fmt::format("[train_loader] image_size must be that of the preprocessing, {}, without a crop, but "
                    "is {}",
                    options.crop.evaluation.size, options.image_size));
  }
  if (options.pin_memory && !at::hasCUDA()) {
    throw ConfigError("[train_loader] pin_memory needs a CUDA device, but there is none");
  }
}

/// Before the order of an empty set is asked for.
const SampleSource& not_empty(const std::shared_ptr<const SampleSource>& source) {
  CONTRASTIVE_INTERNAL_ASSERT(source != nullptr);
  if (source->size() < 1) throw DataError("[train_loader] the training set has no samples");
  return *source;
}

const TrainLoaderOptions& checked(const TrainLoaderOptions& options) {
  check(options);
  return options;
}

}  // namespace

struct TrainLoader::Impl : detail::BatchJob {
  Impl(std::shared_ptr<const SampleSource> source_in, std::shared_ptr<const text::Tokenizer> tokenizer_in,
       const TrainLoaderOptions& options_in)
      : options(checked(options_in)),
        items(options.batch_size / options.world_size),
        source(std::move(source_in)),
        tokenizer(std::move(tokenizer_in)),
        order(options.seed, not_empty(source).size()),
        slots(static_cast<size_t>(detail::BatchWorkers::num_slots(options.prefetch_batches))),
        // One batch in the caller's hands and one on its way to a device, besides the ring's own.
        pool(std::make_shared<PixelPool>(static_cast<size_t>(items * item_bytes()), slots.size() + 2)),
        samples(static_cast<size_t>(options.workers)),
        workers(*this, options.workers, options.prefetch_batches, options.first_step) {}

  /// A batch in the making.
  struct Slot {
    torch::Tensor inputs;          ///< images or features
    std::vector<int32_t> ids;      ///< [items, context_length]
    std::vector<int64_t> lengths;  ///< [items]
    std::mutex bad_mutex;
    std::vector<BadSample> bad;
  };

  int64_t num_items(int64_t) const override { return items; }
  void begin(int64_t step, int64_t slot) override;
  void fill(int64_t step, int64_t slot, int64_t item, int64_t worker) override;

  std::optional<Fault> load(int64_t index, const Place& place, Sample& sample, Slot& slot, int64_t item);
  void read(int64_t index, const Place& place, Sample& sample) const;
  void decode(const Sample& sample, const Place& place, std::span<uint8_t> out) const;
  void take_cached(const Sample& sample, Slot& slot, int64_t item) const;
  int64_t index_of(const Place& place, int64_t attempt) const;
  bool has_features() const { return options.feature_width > 0; }
  std::span<int32_t> ids_of(Slot& slot, int64_t item) const;
  std::span<uint8_t> input_of(const Slot& slot, int64_t item) const;

  /// Of an image, or of the features.
  int64_t item_bytes() const {
    constexpr int64_t kFloatBytes = sizeof(float);
    return has_features() ? options.feature_width * kFloatBytes : options.image_size * options.image_size * 3;
  }

  void count_bad_samples(Slot& slot);
  void count(const BadSample& sample);
  torch::Tensor tokens_of(const Slot& slot) const;

  const TrainLoaderOptions options;
  const int64_t items;  ///< per batch of this rank
  const std::shared_ptr<const SampleSource> source;
  const std::shared_ptr<const text::Tokenizer> tokenizer;
  const SampleOrder order;
  std::vector<Slot> slots;
  const std::shared_ptr<PixelPool> pool;
  std::vector<Sample> samples;  ///< one per worker, memory reused
  BadSampleReport report;
  std::set<int64_t> bad_indices;
  double last_wait_ms = 0;
  detail::BatchWorkers workers;  // last: its threads use all of the above
};

void TrainLoader::Impl::begin(int64_t, int64_t slot_number) {
  Slot& slot = slots[static_cast<size_t>(slot_number)];
  const std::vector<int64_t> sizes = has_features()
                                         ? std::vector<int64_t>{items, options.feature_width}
                                         : std::vector<int64_t>{items, options.image_size, options.image_size, 3};
  const auto dtype = has_features() ? at::kFloat : at::kByte;
  // The pinned allocator keeps memory by itself, and knows when a copy to the device has ended.
  slot.inputs =
      options.pin_memory ? at::empty(sizes, at::TensorOptions(dtype).pinned_memory(true)) : pool->tensor(sizes, dtype);
  slot.ids.resize(static_cast<size_t>(items * options.context_length));
  slot.lengths.resize(static_cast<size_t>(items));
  slot.bad.clear();
}

void TrainLoader::Impl::fill(int64_t step, int64_t slot_number, int64_t item, int64_t worker) {
  Slot& slot = slots[static_cast<size_t>(slot_number)];
  Sample& sample = samples[static_cast<size_t>(worker)];
  const int64_t position = step * options.batch_size + options.rank * items + item;
  const Place place{position / source->size(), position % source->size()};
  for (int64_t attempt = 0;; ++attempt) {
    const int64_t index = index_of(place, attempt);
    auto fault = load(index, place, sample, slot, item);
    if (!fault) return;
    if (options.on_bad_sample == BadSamplePolicy::fail) {
      throw DataError(fmt::format("{}: {}", source->describe(index), fault->message));
    }
    if (attempt == kMaxSubstitutes) {
      throw DataError(fmt::format("{}: {}; {} other samples tried before it in its place are bad too",
                                  source->describe(index), fault->message, kMaxSubstitutes));
    }
    const std::lock_guard lock(slot.bad_mutex);
    slot.bad.push_back({item, attempt, index, std::move(*fault)});
  }
}

/// The sample at a place, or the one that stands in for it after `attempt` bad ones.
int64_t TrainLoader::Impl::index_of(const Place& place, int64_t attempt) const {
  if (attempt == 0) return order.at(place.epoch, place.position);
  RandomStream random(options.seed, RandomPurpose::shard_order, {place.epoch, place.position, attempt});
  return random.below(source->size());
}

std::optional<Fault> TrainLoader::Impl::load(int64_t index, const Place& place, Sample& sample, Slot& slot,
                                             int64_t item) {
  try {
    read(index, place, sample);
  } catch (const BadSampleError& error) {
    return Fault{error.reason(), error.what()};
  } catch (const DataError& error) {
    return detail::reading_fault(error.what());
  }
  if (has_features()) {
    take_cached(sample, slot, item);
    return std::nullopt;
  }
  if (auto fault = detail::caption_fault(sample.caption)) return fault;
  try {
    decode(sample, place, input_of(slot, item));
  } catch (const DataError& error) {
    return detail::decoding_fault(error.what());
  }
  slot.lengths[static_cast<size_t>(item)] = tokenizer->tokenize(sample.caption, ids_of(slot, item));
  return std::nullopt;
}

void TrainLoader::Impl::read(int64_t index, const Place& place, Sample& sample) const {
  sample.encoded.clear();
  sample.drawn.pixels.clear();
  sample.caption.clear();
  RandomStream random(options.seed, RandomPurpose::caption, {place.epoch, place.position});
  const auto views = source->num_views();
  RandomStream view(options.seed, RandomPurpose::view, {place.epoch, place.position});
  source->read_view(index, views > 1 ? view.below(views) : 0, random, sample);
}

void TrainLoader::Impl::take_cached(const Sample& sample, Slot& slot, int64_t item) const {
  const auto ids = ids_of(slot, item);
  if (static_cast<int64_t>(sample.features.size()) != options.feature_width || sample.tokens.size() != ids.size()) {
    throw Error(fmt::format("[train_loader] a sample should have {} features and {} ids, but has {} and {}",
                            options.feature_width, ids.size(), sample.features.size(), sample.tokens.size()));
  }
  std::memcpy(input_of(slot, item).data(), sample.features.data(), static_cast<size_t>(item_bytes()));
  std::copy(sample.tokens.begin(), sample.tokens.end(), ids.begin());
  slot.lengths[static_cast<size_t>(item)] = sample.num_tokens;
}

std::span<int32_t> TrainLoader::Impl::ids_of(Slot& slot, int64_t item) const {
  return {slot.ids.data() + item * options.context_length, static_cast<size_t>(options.context_length)};
}

std::span<uint8_t> TrainLoader::Impl::input_of(const Slot& slot, int64_t item) const {
  auto* data = static_cast<uint8_t*>(slot.inputs.data_ptr());
  return {data + item * item_bytes(), static_cast<size_t>(item_bytes())};
}

void TrainLoader::Impl::decode(const Sample& sample, const Place& place, std::span<uint8_t> out) const {
  RandomStream random(options.seed, RandomPurpose::crop, {place.epoch, place.position});
  if (sample.drawn.pixels.empty()) {
    image::decode_for_training(sample.encoded, options.image_size, options.crop, random, out);
  } else {
    image::crop_for_training(sample.drawn, options.image_size, options.crop, random, out);
  }
}

/// Counts in the order of the items, so that the report and the log do not depend on the threads.
void TrainLoader::Impl::count_bad_samples(Slot& slot) {
  std::sort(slot.bad.begin(), slot.bad.end(), [](const BadSample& a, const BadSample& b) {
    return std::tie(a.item, a.attempt) < std::tie(b.item, b.attempt);
  });
  for (const auto& sample : slot.bad) count(sample);
}

void TrainLoader::Impl::count(const BadSample& sample) {
  if (bad_indices.contains(sample.index)) return;
  const auto name = source->describe(sample.index);
  if (report.total == options.max_bad_samples) {
    throw DataError(fmt::format("{}: {}; at most {} bad samples may be skipped (max_bad_samples)", name,
                                sample.fault.message, with_commas(options.max_bad_samples)));
  }
  bad_indices.insert(sample.index);
  ++report.total;
  if (++report.by_reason[sample.fault.reason] > 1) return;
  log(LogLevel::warning, fmt::format("{}: {}; skipped ({} of at most {})", name, sample.fault.message,
                                     with_commas(report.total), with_commas(options.max_bad_samples)));
}

torch::Tensor TrainLoader::Impl::tokens_of(const Slot& slot) const {
  const int64_t longest =
      options.cut_tokens ? *std::max_element(slot.lengths.begin(), slot.lengths.end()) : options.context_length;
  auto tokens = at::empty({items, longest}, at::TensorOptions(at::kLong).pinned_memory(options.pin_memory));
  auto* target = tokens.data_ptr<int64_t>();
  for (int64_t item = 0; item < items; ++item) {
    target = std::copy_n(slot.ids.data() + item * options.context_length, longest, target);
  }
  return tokens;
}

TrainLoader::TrainLoader(std::shared_ptr<const SampleSource> source, std::shared_ptr<const text::Tokenizer> tokenizer,
                         const TrainLoaderOptions& options)
    : impl_(std::make_unique<Impl>(std::move(source), std::move(tokenizer), options)) {}

TrainLoader::~TrainLoader() = default;

Batch TrainLoader::next() {
  const auto start = std::chrono::steady_clock::now();
  auto& slot = impl_->slots[static_cast<size_t>(impl_->workers.wait())];
  impl_->count_bad_samples(slot);
  Batch batch;
  (impl_->has_features() ? batch.features : batch.images) = std::move(slot.inputs);
  batch.tokens = impl_->tokens_of(slot);
  impl_->workers.release();
  impl_->last_wait_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  return batch;
}

int64_t TrainLoader::step() const {
  return impl_->workers.next_batch();
}

double TrainLoader::last_wait_ms() const {
  return impl_->last_wait_ms;
}

BadSampleReport TrainLoader::bad_samples() const {
  return impl_->report;
}

}  // namespace contrastive::data
