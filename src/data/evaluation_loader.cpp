#include "contrastive/data/evaluation_loader.h"

#include <algorithm>
#include <utility>
#include <vector>

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"

#include "batch_workers.h"

namespace contrastive::data {
namespace {

void require_range(const char* name, int64_t value, int64_t minimum, int64_t maximum) {
  if (value >= minimum && value <= maximum) return;
  throw ConfigError(
      fmt::format("[evaluation_loader] {} must be in [{}, {}], but is {}", name, minimum, maximum, value));
}

/// Before any thread is started.
int64_t checked_workers(const image::PreprocessSpec& spec, int64_t batch_size, int64_t workers) {
  require_range("image size", spec.size, 1, 1 << 13);
  require_range("batch_size", batch_size, 1, 1 << 24);
  require_range("workers", workers, 1, 1 << 10);
  return workers;
}

}  // namespace

struct EvaluationLoader::Impl : detail::BatchJob {
  Impl(const SampleSource& source_in, const image::PreprocessSpec& spec_in, int64_t batch_size_in, int64_t num_workers,
       int64_t rank_in, int64_t world_size_in, bool keep_failures_in)
      : source(source_in),
        spec(spec_in),
        batch_size(batch_size_in),
        rank(rank_in),
        world_size(world_size_in),
        keep_failures(keep_failures_in),
        samples(static_cast<size_t>(checked_workers(spec, batch_size, num_workers))),
        workers(*this, num_workers, /*ahead=*/0, /*first_batch=*/0) {}

  /// The first sample of this rank's batch of that number.
  int64_t first_sample(int64_t number) const { return (number * world_size + rank) * batch_size; }

  int64_t num_items(int64_t number) const override {
    return std::min(batch_size, source.size() - first_sample(number));
  }

  void begin(int64_t number, int64_t) override {
    const int64_t items = num_items(number);
    batch.images = at::empty({items, spec.size, spec.size, 3}, at::kByte);
    batch.labels = at::full({items}, -1, at::kLong);
    batch.label_lists.assign(static_cast<size_t>(items), {});
    batch.failures.assign(static_cast<size_t>(items), {});
    batch.first_sample = first_sample(number);
  }

  void fill(int64_t number, int64_t, int64_t item, int64_t worker) override {
    const int64_t index = first_sample(number) + item;
    Sample& sample = samples[static_cast<size_t>(worker)];
    const auto bytes = spec.size * spec.size * 3;
    auto* row = batch.images.data_ptr<uint8_t>() + item * bytes;
    try {
      load(index, sample, row);
    } catch (const DataError& error) {
      if (!keep_failures) throw DataError(fmt::format("{}: {}", source.describe(index), error.what()));
      std::fill_n(row, bytes, uint8_t{0});
      batch.failures[static_cast<size_t>(item)] = error.what();
      return;
    }
    batch.labels.data_ptr<int64_t>()[item] = sample.label;
    batch.label_lists[static_cast<size_t>(item)] = sample.labels;
  }

  void load(int64_t index, Sample& sample, uint8_t* out) const {
    sample.encoded.clear();
    sample.drawn.pixels.clear();
    sample.label = -1;
    sample.labels.clear();
    RandomStream random(/*seed=*/0, RandomPurpose::caption, {index});
    source.read(index, random, sample);
    const auto image = sample.drawn.pixels.empty() ? image::decode_image(sample.encoded) : sample.drawn;
    const auto square = image::preprocess_for_evaluation(image::to_rgb(image), spec);
    std::copy(square.pixels.begin(), square.pixels.end(), out);
  }

  const SampleSource& source;
  const image::PreprocessSpec spec;
  const int64_t batch_size;
  const int64_t rank;
  const int64_t world_size;
  const bool keep_failures;
  std::vector<Sample> samples;  ///< one per worker, memory reused
  LabelledBatch batch;
  detail::BatchWorkers workers;  // last: its threads use all of the above
};

EvaluationLoader::EvaluationLoader(const SampleSource& source, const image::PreprocessSpec& spec, int64_t batch_size,
                                   int64_t workers, int64_t rank, int64_t world_size, bool keep_failures)
    : impl_(std::make_unique<Impl>(source, spec, batch_size, workers, rank, world_size, keep_failures)) {}

EvaluationLoader::~EvaluationLoader() = default;

std::optional<LabelledBatch> EvaluationLoader::next() {
  if (impl_->first_sample(impl_->workers.next_batch()) >= impl_->source.size()) return std::nullopt;
  impl_->workers.wait();
  auto batch = std::exchange(impl_->batch, {});
  impl_->workers.release();
  return batch;
}

}  // namespace contrastive::data
