#include "contrastive/data/embedding_cache_loader.h"

#include <algorithm>
#include <utility>
#include <vector>

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/random.h"

#include "data/batch_workers.h"
#include "data/sample_faults.h"

namespace contrastive::data {
namespace {

void check(const EmbeddingCacheLoaderOptions& options) {
  const auto require = [](const char* name, int64_t value, int64_t minimum, int64_t maximum) {
    if (value >= minimum && value <= maximum) return;
    throw ConfigError(
        fmt::format("[embedding cache] {} must be in [{}, {}], but is {}", name, minimum, maximum, value));
  };
  require("image_size", options.image_size, 1, 1 << 13);
  require("num_views", options.num_views, 1, 1 << 10);
  require("context_length", options.context_length, 1, 1 << 16);
  require("batch_size", options.batch_size, 1, 1 << 16);
  require("samples_per_part", options.samples_per_part, 1, 1 << 24);
  require("first_sample", options.first_sample, 0, int64_t{1} << 40);
  require("workers", options.workers, 1, 1 << 10);
  require("prefetch_batches", options.prefetch_batches, 0, 1 << 10);
  if (options.num_views > 1 && options.crop.kind == image::TrainCrop::none) {
    throw ConfigError(fmt::format(
        "[embedding cache] {} views of an image would all be the same: data.crop.kind is none", options.num_views));
  }
  if (options.first_sample % options.samples_per_part != 0) {
    throw ConfigError(fmt::format("[embedding cache] first_sample must be the first of a part of {}, but is {}",
                                  options.samples_per_part, options.first_sample));
  }
}

const EmbeddingCacheLoaderOptions& checked(const EmbeddingCacheLoaderOptions& options) {
  check(options);
  return options;
}

std::string one_line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

}  // namespace

struct EmbeddingCacheLoader::Impl : detail::BatchJob {
  Impl(const SampleSource& sample_source, const text::Tokenizer& caption_tokenizer,
       const EmbeddingCacheLoaderOptions& loader_options)
      : options(checked(loader_options)),
        source(sample_source),
        tokenizer(caption_tokenizer),
        slots(static_cast<size_t>(detail::BatchWorkers::num_slots(options.prefetch_batches))),
        scratch(static_cast<size_t>(options.workers)),
        workers(*this, options.workers, options.prefetch_batches, /*first_batch=*/0) {}

  /// What is known of one sample.
  struct Item {
    std::string key;
    std::vector<int32_t> tokens, lengths;
    std::optional<detail::Fault> fault;
  };

  struct Slot {
    torch::Tensor images;
    std::vector<Item> items;
  };

  struct Range {
    int64_t begin, end;
  };

  /// The samples of a batch; past the end of the set an empty range.
  Range range_of(int64_t number) const {
    const auto per_part = (options.samples_per_part + options.batch_size - 1) / options.batch_size;
    const auto part = options.first_sample + number / per_part * options.samples_per_part;
    const auto begin = part + number % per_part * options.batch_size;
    const auto end = std::min({begin + options.batch_size, part + options.samples_per_part, source.size()});
    return {begin, std::max(begin, end)};
  }

  bool is_past_the_end(int64_t number) const {
    // Only the last part is short: after its last sample nothing comes.
    return range_of(number).begin >= source.size();
  }

  int64_t image_bytes() const { return options.image_size * options.image_size * 3; }

  /// One item that does nothing stands for a batch past the end, which threads may look ahead to.
  int64_t num_items(int64_t number) const override {
    const auto range = range_of(number);
    return std::max<int64_t>(1, range.end - range.begin);
  }

  void begin(int64_t number, int64_t slot_number) override {
    auto& slot = slots[static_cast<size_t>(slot_number)];
    const auto range = range_of(number);
    const auto size = range.end - range.begin;
    slot.items.assign(static_cast<size_t>(size), {});
    slot.images = at::empty({size, options.num_views, options.image_size, options.image_size, 3}, at::kByte);
  }

  void fill(int64_t number, int64_t slot_number, int64_t item, int64_t worker) override {
    if (is_past_the_end(number)) return;
    auto& slot = slots[static_cast<size_t>(slot_number)];
    const auto size = static_cast<size_t>(options.num_views * image_bytes());
    const std::span out(slot.images.data_ptr<uint8_t>() + static_cast<size_t>(item) * size, size);
    auto& found = slot.items[static_cast<size_t>(item)];
    const auto index = range_of(number).begin + item;
    found.key = source.key(index);
    found.fault = load(index, scratch[static_cast<size_t>(worker)], found, out);
    if (!found.fault) return;
    found.tokens.clear();
    found.lengths.clear();
    std::fill(out.begin(), out.end(), uint8_t{0});
  }

  /// In the order of TrainLoader, so that the same fault is found.
  std::optional<detail::Fault> load(int64_t index, Sample& sample, Item& item, std::span<uint8_t> out) const {
    sample.encoded.clear();
    sample.drawn.pixels.clear();
    sample.caption.clear();
    std::vector<std::string> captions;
    try {
      captions = source.read_with_all_captions(index, sample);
    } catch (const BadSampleError& error) {
      return detail::Fault{error.reason(), error.what()};
    } catch (const DataError& error) {
      return detail::reading_fault(error.what());
    }
    if (captions.empty()) return detail::caption_fault("");
    for (const auto& caption : captions) {
      if (auto fault = detail::caption_fault(caption)) return fault;
    }
    try {
      decode(index, sample, out);
    } catch (const DataError& error) {
      return detail::decoding_fault(error.what());
    }
    tokenize(captions, item);
    return std::nullopt;
  }

  void decode(int64_t index, const Sample& sample, std::span<uint8_t> out) const {
    for (int64_t view = 0; view < options.num_views; ++view) {
      RandomStream random(static_cast<uint64_t>(options.view_seed), RandomPurpose::view_crop, {view, index});
      const auto square = out.subspan(static_cast<size_t>(view * image_bytes()), static_cast<size_t>(image_bytes()));
      if (sample.drawn.pixels.empty()) {
        image::decode_for_training(sample.encoded, options.image_size, options.crop, random, square);
      } else {
        image::crop_for_training(sample.drawn, options.image_size, options.crop, random, square);
      }
    }
  }

  void tokenize(const std::vector<std::string>& captions, Item& item) const {
    const auto length = static_cast<size_t>(options.context_length);
    item.tokens.resize(captions.size() * length);
    for (size_t i = 0; i < captions.size(); ++i) {
      const std::span row(item.tokens.data() + i * length, length);
      item.lengths.push_back(static_cast<int32_t>(tokenizer.tokenize(captions[i], row)));
    }
  }

  EmbeddingCacheBatch take(int64_t number, Slot& slot) const {
    const auto [begin, end] = range_of(number);
    EmbeddingCacheBatch batch{begin, end, std::move(slot.images), {}};
    auto& samples = batch.samples;
    for (auto& item : slot.items) {
      const auto index = begin + static_cast<int64_t>(samples.keys.size());
      if (item.fault) {
        samples.missing.push_back({index, one_line(item.fault->reason), one_line(item.fault->message)});
      }
      samples.keys.push_back(std::move(item.key));
      samples.num_captions.push_back(static_cast<int64_t>(item.lengths.size()));
      samples.tokens.insert(samples.tokens.end(), item.tokens.begin(), item.tokens.end());
      samples.lengths.insert(samples.lengths.end(), item.lengths.begin(), item.lengths.end());
    }
    return batch;
  }

  const EmbeddingCacheLoaderOptions options;
  const SampleSource& source;
  const text::Tokenizer& tokenizer;
  std::vector<Slot> slots;
  std::vector<Sample> scratch;   ///< one per worker, memory reused
  detail::BatchWorkers workers;  // last: its threads use all of the above
};

EmbeddingCacheLoader::EmbeddingCacheLoader(const SampleSource& source, const text::Tokenizer& tokenizer,
                                           const EmbeddingCacheLoaderOptions& options)
    : impl_(std::make_unique<Impl>(source, tokenizer, options)) {}

EmbeddingCacheLoader::~EmbeddingCacheLoader() = default;

std::optional<EmbeddingCacheBatch> EmbeddingCacheLoader::next() {
  const auto number = impl_->workers.next_batch();
  if (impl_->is_past_the_end(number)) return std::nullopt;
  auto& slot = impl_->slots[static_cast<size_t>(impl_->workers.wait())];
  auto batch = impl_->take(number, slot);
  impl_->workers.release();
  return batch;
}

}  // namespace contrastive::data
