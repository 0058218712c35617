#include "bench_loader.h"

#include <algorithm>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/data/shard_list.h"
#include "contrastive/data/train_loader.h"
#include "contrastive/data/webdataset_source.h"

#include "bench_measure.h"
#include "bench_memory.h"

namespace contrastive::tools {
namespace {

/// Whole batches of an epoch, and how often they are gone through.
struct Extent {
  int64_t batches = 0;
  int64_t epochs = 0;
};

Extent extent_of(const LoaderArguments& arguments, int64_t samples) {
  Extent extent{samples / arguments.batch_size, arguments.epochs};
  if (extent.batches == 0) throw ConfigError("--batch-size is larger than the data set");
  if (arguments.samples > 0) {
    const auto samples_an_epoch = extent.batches * arguments.batch_size;
    extent.epochs = (arguments.samples + samples_an_epoch - 1) / samples_an_epoch;
  }
  return extent;
}

class LoaderRun {
 public:
  LoaderRun(const LoaderArguments& arguments, int64_t workers, std::shared_ptr<const data::SampleSource> source)
      : extent_(extent_of(arguments, source->size())),
        batch_size_(arguments.batch_size),
        workers_(workers),
        loader_(std::move(source), clip_tokenizer(), options(arguments, workers)) {}

  void run() {
    const auto start = Clock::now();
    for (int64_t epoch = 0; epoch < extent_.epochs; ++epoch) run_epoch();
    all_seconds_ = seconds_since(start);
    last_memory_ = resident_memory();
  }

  nlohmann::ordered_json result() {
    std::sort(seconds_an_image_.begin(), seconds_an_image_.end());
    return {{"benchmark", "loader"},
            {"batch", batch_size_},
            {"workers", workers_},
            {"epochs", extent_.epochs},
            {"samples", batches_done_ * batch_size_},
            {"images_per_s", 1 / median(seconds_an_image_)},
            {"images_per_s_max", 1 / seconds_an_image_.front()},
            {"images_per_s_overall", static_cast<double>(batches_done_ * batch_size_) / all_seconds_},
            {"memory_mb_after_tenth", early_memory_ / 1e6},
            {"memory_mb_at_end", last_memory_ / 1e6},
            {"memory_mb_growth", (last_memory_ - early_memory_) / 1e6},
            {"memory_mb_peak", peak_memory() / 1e6}};
  }

 private:
  static data::TrainLoaderOptions options(const LoaderArguments& arguments, int64_t workers) {
    data::TrainLoaderOptions options;
    options.batch_size = arguments.batch_size;
    options.image_size = arguments.image_size;
    options.workers = workers;
    return options;
  }

  void run_epoch() {
    auto start = Clock::now();
    for (int64_t batch = 0; batch < extent_.batches; ++batch) {
      loader_.next();
      if (batch == 0 && extent_.batches > 1) start = Clock::now();
      note_memory();
    }
    const auto timed = std::max<int64_t>(1, extent_.batches - 1) * batch_size_;
    seconds_an_image_.push_back(seconds_since(start) / static_cast<double>(timed));
  }

  void note_memory() {
    ++batches_done_;
    const auto tenth = std::max<int64_t>(1, extent_.batches * extent_.epochs / 10);
    if (batches_done_ == tenth) early_memory_ = resident_memory();
  }

  Extent extent_;
  int64_t batch_size_, workers_;
  data::TrainLoader loader_;
  std::vector<double> seconds_an_image_;  ///< of each epoch
  double all_seconds_ = 0;
  int64_t batches_done_ = 0;
  double early_memory_ = 0, last_memory_ = 0;
};

}  // namespace

std::shared_ptr<const text::ClipTokenizer> clip_tokenizer() {
  return std::make_shared<text::ClipTokenizer>(find_resource("clip/bpe_simple_vocab_16e6.txt.gz"));
}

std::vector<nlohmann::ordered_json> bench_loader(const LoaderArguments& arguments) {
  const auto source = std::make_shared<data::WebdatasetSource>(
      data::ShardIndex::open(data::expand_shard_list(arguments.shards)), data::WebdatasetOptions{});
  std::vector<nlohmann::ordered_json> results;
  for (const auto workers : arguments.workers) {
    LoaderRun run(arguments, workers, source);
    run.run();
    results.push_back(run.result());
    results.back()["shards"] = arguments.shards;
    results.back()["image_size"] = arguments.image_size;
  }
  return results;
}

}  // namespace contrastive::tools
