#include "train/run_data.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/log.h"
#include "contrastive/data/embedding_cache.h"
#include "contrastive/data/shard_list.h"
#include "contrastive/data/synthetic.h"
#include "contrastive/data/webdataset_source.h"
#include "contrastive/eval/checkpoint_source.h"
#include "contrastive/eval/preprocess_config.h"
#include "contrastive/eval/tower_source.h"
#include "contrastive/train/image_tower.h"
#include "contrastive/train/training_data.h"

namespace contrastive::train::detail {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kGpuPrefetchBatches = 4;

bool shards_are_there(const std::string& list) {
  if (list == "synthetic") return true;
  const auto shards = data::expand_shard_list(list);
  try {
    data::require_shards_exist(shards);
  } catch (const DataError&) {
    return false;
  }
  return true;
}

/// Throws: ConfigError with everything in which the cache is not the run's.
void check_cache(const RunOptions& options, const models::ModelConfig& config, const text::Tokenizer& tokenizer,
                 const data::EmbeddingCache& cache) {
  data::ExpectedCache expected;
  expected.tower = image_tower_fingerprint(options, find_image_tower(options));
  const auto spec = eval::load_preprocess(options.preprocess, config.vision_cfg.image_size);
  expected.preprocessing = data::cached_preprocessing(spec, crop_options(options, spec));
  expected.feature_width = config.vision_cfg.output_width();
  expected.context_length = config.text_cfg.context_length;
  expected.tokenizer = data::tokenizer_fingerprint(tokenizer, config.text_cfg.context_length);
  if (shards_are_there(options.data.train)) {
    const auto source = open_sample_source(options.data);
    expected.data = source->fingerprint();
    expected.data_settings = source->settings();
    expected.num_samples = source->size();
  } else {
    log(LogLevel::info, fmt::format("[{}] is trusted to be of data.train, which is not there: {}", options.image.cache,
                                    options.data.train));
  }
  data::require_matching_cache(cache, expected);
  if (cache.description().precision != options.precision) {
    log(LogLevel::info, fmt::format("[{}] was computed in {}, the run computes in {}", options.image.cache,
                                    cache.description().precision, options.precision));
  }
}

}  // namespace

fs::path keep_tokenizer(const RunOptions& options, const models::ModelConfig& config, bool writes) {
  const auto kept = options.run_directory() / "tokenizer";
  if (config.text_cfg.hf_tokenizer_name.empty() || fs::is_directory(kept)) return kept;
  const auto origin = tokenizer_origin(options);
  eval::open_tokenizer(config, origin);  // an error here leaves nothing behind
  if (!writes) return origin;
  const auto partial = options.run_directory() / "tokenizer.partial";  // never half a vocabulary under the good name
  fs::create_directories(partial);
  eval::copy_tokenizer_files(origin, partial);
  fs::rename(partial, kept);
  return kept;
}

std::shared_ptr<const data::SampleSource> open_training_data(const RunOptions& options,
                                                             const models::ModelConfig& config,
                                                             const text::Tokenizer& tokenizer) {
  if (options.image.cache.empty()) return open_sample_source(options.data);
  auto cache = std::make_shared<const data::EmbeddingCache>(options.image.cache);
  check_cache(options, config, tokenizer, *cache);
  return std::make_shared<data::EmbeddingCacheSource>(std::move(cache));
}

data::TrainLoaderOptions loader_options(const RunOptions& options, const models::ModelConfig& config,
                                        const distributed::ProcessGroup& group, torch::Device device,
                                        int64_t first_step) {
  data::TrainLoaderOptions result;
  result.batch_size = options.train.global_batch;
  result.rank = group.rank();
  result.world_size = group.size();
  result.image_size = config.vision_cfg.image_size;
  result.context_length = config.text_cfg.context_length;
  result.cut_tokens = config.text_cfg.may_cut_padding();
  result.crop = crop_options(options, eval::load_preprocess(options.preprocess, config.vision_cfg.image_size));
  result.seed = static_cast<uint64_t>(options.seed);
  result.workers = options.data.workers;
  result.prefetch_batches = options.data.prefetch_batches.value_or(device.is_cuda() ? kGpuPrefetchBatches : 0);
  result.on_bad_sample =
      options.data.on_bad_sample == "skip" ? data::BadSamplePolicy::skip : data::BadSamplePolicy::fail;
  result.max_bad_samples = options.data.max_bad_samples;
  result.pin_memory = device.is_cuda();
  result.first_step = first_step;
  if (!options.image.cache.empty()) result.feature_width = config.vision_cfg.output_width();
  return result;
}

int64_t count_steps(const TrainOptions& options, int64_t num_samples) {
  if (options.steps) return *options.steps;
  const double samples =
      options.samples ? static_cast<double>(*options.samples) : *options.epochs * static_cast<double>(num_samples);
  return std::max<int64_t>(1, std::llround(std::ceil(samples / static_cast<double>(options.global_batch))));
}

}  // namespace contrastive::train::detail
