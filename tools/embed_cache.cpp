#include "embed_cache.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"
#include "contrastive/data/embedding_cache.h"
#include "contrastive/data/embedding_cache_loader.h"
#include "contrastive/data/normalize.h"
#include "contrastive/eval/checkpoint_source.h"
#include "contrastive/models/model_config.h"
#include "contrastive/models/precision.h"
#include "contrastive/train/image_tower.h"
#include "contrastive/train/run_options.h"
#include "contrastive/train/trainer.h"
#include "contrastive/train/training_data.h"

#include "common/count_progress.h"
#include "common/program.h"

namespace contrastive::tools {
namespace {

namespace fs = std::filesystem;

/// One view is the image as evaluation sees it; several are crops as training draws them.
image::TrainCropOptions crop_of(const train::RunOptions& options, const image::PreprocessSpec& preprocess,
                                int64_t views) {
  const auto& kind = options.data.crop.kind;
  if (views == 1 && kind != "none") {
    throw ConfigError(fmt::format(
        "data.crop.kind: {} gives another crop at every step, but a cache with one view holds one for all: say "
        "data.crop.kind=none (no augmentation), or --views K for K crops of each image to choose from",
        kind));
  }
  if (views > 1 && kind == "none") {
    throw ConfigError(
        fmt::format("--views: {} views of an image would all be the same, as data.crop.kind is none", views));
  }
  return train::crop_options(options, preprocess);
}

torch::ScalarType dtype_of(const std::string& name) {
  return name == "fp16" ? at::kHalf : name == "bf16" ? at::kBFloat16 : at::kFloat;
}

/// Everything that is opened before the work starts.
struct Work {
  Work(const train::RunOptions& run_options, const CacheArguments& cache_arguments)
      : options(run_options),
        arguments(cache_arguments),
        device(train::choose_device(options.device)),
        config(models::load_model_config(options.model)),
        tokenizer(eval::open_tokenizer(config, train::tokenizer_origin(options))),
        source(train::open_sample_source(options.data)),
        tower(train::open_image_tower(options)),
        crop(crop_of(options, tower.preprocess, arguments.views)),
        uses_bf16((arguments.precision.empty() ? options.precision : arguments.precision) == "amp_bf16") {
    if (options.threads > 0) at::set_num_threads(static_cast<int>(options.threads));
    tower.tower->to(device);
    tower.tower->eval();
  }

  data::CacheDescription description() const {
    data::CacheDescription result;
    result.num_samples = source->size();
    result.samples_per_part = arguments.part_rows;
    result.num_views = arguments.views;
    result.view_seed = arguments.views > 1 ? options.seed : 0;
    result.feature_width = tower.tower->feature_width();
    result.dtype = dtype_of(arguments.dtype);
    result.precision = uses_bf16 ? "amp_bf16" : "fp32";
    result.tower = tower.fingerprint;
    result.preprocessing = data::cached_preprocessing(tower.preprocess, crop);
    result.data = source->fingerprint();
    result.data_settings = source->settings();
    result.context_length = config.text_cfg.context_length;
    result.tokenizer = data::tokenizer_fingerprint(*tokenizer, result.context_length);
    return result;
  }

  data::EmbeddingCacheLoaderOptions loader_options(int64_t first_sample) const {
    const auto images = arguments.batch_size > 0 ? arguments.batch_size : train::locked_batch_size(options);
    data::EmbeddingCacheLoaderOptions result;
    result.image_size = tower.preprocess.size;
    result.crop = crop;
    result.num_views = arguments.views;
    result.view_seed = options.seed;
    result.context_length = config.text_cfg.context_length;
    result.batch_size = std::max<int64_t>(1, images / arguments.views);
    result.samples_per_part = arguments.part_rows;
    result.first_sample = first_sample;
    result.workers = arguments.workers > 0 ? arguments.workers : options.data.workers;
    return result;
  }

  /// Shapes: images [n, V, S, S, 3] to [n, V, D], on the CPU.
  torch::Tensor features_of(const torch::Tensor& images) const {
    const torch::NoGradGuard no_grad;
    const auto pixels = data::normalize_images(images.flatten(0, 1), tower.preprocess.mean, tower.preprocess.std,
                                               device);  // [n V, 3, S, S]
    const models::AutocastGuard autocast(device.type(), uses_bf16);
    const auto features = tower.tower->forward_features(pixels);  // [n V, D]
    return features.to(at::kFloat).cpu().reshape({images.size(0), images.size(1), -1});
  }

  train::RunOptions options;
  CacheArguments arguments;
  torch::Device device;
  models::ModelConfig config;
  std::shared_ptr<const text::Tokenizer> tokenizer;
  std::shared_ptr<const data::SampleSource> source;
  train::OpenedImageTower tower;
  image::TrainCropOptions crop;
  bool uses_bf16;
};

/// What happens at samples that can't be used.
class BadSamples {
 public:
  BadSamples(const Work& work, int64_t found_before)
      : source_(*work.source),
        skips_((work.arguments.on_bad_sample.empty() ? work.options.data.on_bad_sample
                                                     : work.arguments.on_bad_sample) == "skip"),
        limit_(work.options.data.max_bad_samples),
        count_(found_before) {}

  int64_t count() const { return count_; }

  /// Throws: DataError naming the first one if they are no longer to be skipped.
  void add(const std::vector<data::MissingSample>& found) {
    for (const auto& [sample, reason, message] : found) {
      const auto text = fmt::format("{}: {}", source_.describe(sample), message);
      if (!skips_) throw DataError(text + " (--on-bad-sample skip leaves such samples out)");
      if (++count_ <= limit_) continue;
      throw DataError(fmt::format("{}; at most {} samples may be bad (data.max_bad_samples)", text, limit_));
    }
  }

 private:
  const data::SampleSource& source_;
  bool skips_;
  int64_t limit_;
  int64_t count_;
};

/// Makes the next part and writes it. Returns: false if it was told to stop before.
bool make_part(const Work& work, data::EmbeddingCacheLoader& loader, data::EmbeddingCacheWriter& writer,
               BadSamples& bad_samples, CountProgress& progress) {
  std::vector<torch::Tensor> features;
  data::CachedSamples samples;
  for (auto done = writer.next_sample(); done < writer.part_end();) {
    if (stop_requested()) return false;
    auto batch = loader.next();
    CONTRASTIVE_INTERNAL_ASSERT(batch && batch->begin == done);
    bad_samples.add(batch->samples.missing);
    features.push_back(work.features_of(batch->images));
    samples.append(std::move(batch->samples));
    done = batch->end;
    progress.update(done, fmt::format("missing {}", bad_samples.count()));
  }
  writer.write_part(at::cat(features), samples);
  return true;
}

void print_report(const fs::path& folder, const data::CacheReport& report) {
  fmt::print("{} samples in {}, {:.1f} MB\n", report.num_samples - report.num_missing, folder.string(),
             static_cast<double>(report.bytes) / 1e6);
  if (report.num_missing == 0) return;
  fmt::print("{} samples are missing:\n", report.num_missing);
  for (const auto& [reason, count] : report.missing_by_reason) fmt::print("  {}: {}\n", reason, count);
  fmt::print("the first of them:\n");
  for (const auto& line : report.first_missing) fmt::print("  {}\n", line);
}

}  // namespace

int embed_cache(const CacheArguments& arguments) {
  install_stop_signals();
  const auto options = train::load_run_options(arguments.config, arguments.overrides);
  const fs::path folder = arguments.output.empty() ? options.image.cache : arguments.output;
  if (folder.empty()) throw ConfigError("image.cache: the config names no folder for the cache; give --output");
  auto inputs = options;
  inputs.image.cache.clear();  // it is made here
  train::require_inputs(inputs);
  const Work work(options, arguments);
  const auto description = work.description();
  data::EmbeddingCacheWriter writer(folder, description);
  if (writer.is_complete()) {
    data::EmbeddingCache(folder).verify();
    fmt::print("nothing to do: {} is complete, its checksums are right\n", folder.string());
    print_report(folder, writer.finish());
    return kDone;
  }
  fmt::print("{} x {} of {} ({}), {}\n", description.num_samples,
             description.num_views == 1 ? "image" : fmt::format("{} views", description.num_views),
             description.feature_width, arguments.dtype, description.preprocessing);
  if (writer.next_sample() > 0) fmt::print("going on at sample {}\n", writer.next_sample());
  std::fflush(stdout);
  data::EmbeddingCacheLoader loader(*work.source, *work.tokenizer, work.loader_options(writer.next_sample()));
  CountProgress progress("", writer.next_sample(), description.num_samples);
  BadSamples bad_samples(work, writer.num_missing());
  while (writer.next_sample() < description.num_samples) {
    if (make_part(work, loader, writer, bad_samples, progress)) continue;
    fmt::print("\nstopped on request; the same command goes on at sample {}\n", writer.next_sample());
    return kDone;
  }
  print_report(folder, writer.finish());
  return kDone;
}

}  // namespace contrastive::tools
