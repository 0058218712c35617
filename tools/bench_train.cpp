#include "bench_train.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/record_function.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/data/normalize.h"
#include "contrastive/data/shard_list.h"
#include "contrastive/data/train_loader.h"
#include "contrastive/data/webdataset_source.h"
#include "contrastive/eval/model_folder.h"
#include "contrastive/loss/model_loss.h"
#include "contrastive/models/precision.h"
#include "contrastive/optim/adamw.h"

#include "bench_loader.h"
#include "bench_measure.h"
#include "bench_memory.h"
#include "bench_profile.h"

namespace contrastive::tools {
namespace {

/// Rows of `length` ids with the two highest as start and end, as captions of that length give them. [B, length]
torch::Tensor random_tokens(int64_t rows, int64_t length, int64_t vocab_size) {
  auto tokens = at::randint(0, std::max<int64_t>(1, vocab_size - 2), {rows, length}, at::kLong);
  tokens.select(1, 0).fill_(vocab_size - 2);
  tokens.select(1, length - 1).fill_(vocab_size - 1);
  return tokens;
}

/// Where the steps' batches come from: one random batch again and again, or shards.
class Batches {
 public:
  Batches(const TrainArguments& arguments, const models::ModelConfig& config) {
    if (arguments.data.empty()) {
      fixed_ = random_batch(arguments, config);
    } else {
      open(arguments, config);
    }
  }

  data::Batch next() {
    RECORD_USER_SCOPE("contrastive::data");
    return loader_ ? loader_->next() : fixed_;
  }

 private:
  static data::Batch random_batch(const TrainArguments& arguments, const models::ModelConfig& config) {
    if (arguments.tokens < 2 || arguments.tokens > config.text_cfg.context_length) {
      throw ConfigError(fmt::format("--tokens must be between 2 and {}", config.text_cfg.context_length));
    }
    const auto rows = arguments.batch_size, size = config.vision_cfg.image_size;
    data::Batch batch;
    if (arguments.image_tower == "cached") {
      batch.features = at::randn({rows, config.vision_cfg.output_width()});
    } else {
      batch.images = at::randint(0, 256, {rows, size, size, 3}, at::kByte);
    }
    batch.tokens = random_tokens(rows, arguments.tokens, config.text_cfg.vocab_size);
    return batch;
  }

  void open(const TrainArguments& arguments, const models::ModelConfig& config) {
    if (arguments.image_tower == "cached") throw ConfigError("--data has no features for --image-tower cached");
    const auto tokenizer = clip_tokenizer();
    if (config.text_cfg.vocab_size != tokenizer->vocab_size()) {
      throw ConfigError(fmt::format("--data: [{}] has {} tokens, CLIP's tokenizer {}", arguments.model,
                                    config.text_cfg.vocab_size, tokenizer->vocab_size()));
    }
    data::TrainLoaderOptions options;
    options.batch_size = arguments.batch_size;
    options.image_size = config.vision_cfg.image_size;
    options.context_length = config.text_cfg.context_length;
    options.workers = arguments.workers;
    options.prefetch_batches = arguments.prefetch;
    const auto source = std::make_shared<data::WebdatasetSource>(
        data::ShardIndex::open(data::expand_shard_list(arguments.data)), data::WebdatasetOptions{});
    loader_ = std::make_unique<data::TrainLoader>(source, tokenizer, options);
  }

  data::Batch fixed_;
  std::unique_ptr<data::TrainLoader> loader_;
};

class Training {
 public:
  Training(const TrainArguments& arguments, const models::ModelConfig& config, torch::Device device)
      : device_(device),
        is_bf16_(arguments.precision == "amp_bf16"),
        model_(make_model(arguments, config, device)),
        optimizer_(model_->named_trainable(), {}, optim::open_clip_decays) {
    optimizer_.renew_copies(models::compute_copies(*model_));
  }

  void step(const data::Batch& batch) {
    const auto output = forward(batch);
    const auto result = loss_of(output);
    result.loss.backward();
    update();
    (void)result.loss.item<float>();  // a GPU's work ends here
  }

 private:
  static models::ClipModel make_model(const TrainArguments& arguments, const models::ModelConfig& config,
                                      torch::Device device) {
    const bool is_cached = arguments.image_tower == "cached";
    models::ClipModel model(config, torch::kCPU,
                            is_cached ? models::ImageTowerPart::projection : models::ImageTowerPart::whole);
    model->reset_parameters(at::make_generator<at::CPUGeneratorImpl>(uint64_t{0}));
    model->to(device);
    model->train();
    if (arguments.image_tower != "trained") model->visual->lock({.unlocked_groups = 0, .head = true});
    return model;
  }

  torch::Tensor images_of(const data::Batch& batch) const {
    RECORD_USER_SCOPE("contrastive::normalize_images");
    return data::normalize_images(batch.images, preprocess_.mean, preprocess_.std, device_);
  }

  models::ClipOutput forward(const data::Batch& batch) {
    const auto tokens = batch.tokens.to(device_);
    if (batch.features.defined()) {
      const models::AutocastGuard autocast(device_.type(), is_bf16_);
      return model_->forward_features(batch.features.to(device_), tokens);
    }
    const auto images = images_of(batch);
    const models::AutocastGuard autocast(device_.type(), is_bf16_);
    return model_->forward(images, tokens);
  }

  static loss::ContrastiveLossOutput loss_of(const models::ClipOutput& output) {
    RECORD_USER_SCOPE("contrastive::loss");
    return loss::model_loss(output);
  }

  void update() {
    RECORD_USER_SCOPE("contrastive::optim");
    optimizer_.step(1e-5);
    optimizer_.zero_grad();
    model_->clamp_logit_scale();
  }

  torch::Device device_;
  bool is_bf16_;
  image::PreprocessSpec preprocess_;
  models::ClipModel model_;
  optim::AdamW optimizer_;
};

}  // namespace

nlohmann::ordered_json bench_train(const TrainArguments& arguments) {
  if (arguments.threads > 0) at::set_num_threads(static_cast<int>(arguments.threads));
  const auto config = models::model_config_from_file(eval::find_model_config(arguments.model));
  const torch::Device device = at::hasCUDA() ? torch::kCUDA : torch::kCPU;
  Batches batches(arguments, config);
  Training training(arguments, config, device);
  training.step(batches.next());  // the first step also takes the memory
  std::optional<StepProfile> profile;
  if (arguments.is_profiled) profile.emplace();
  const auto seconds = time_each(arguments.steps, [&] { training.step(batches.next()); });
  nlohmann::ordered_json result = {{"benchmark", "train"},
                                   {"model", arguments.model},
                                   {"precision", arguments.precision},
                                   {"batch", arguments.batch_size}};
  if (arguments.data.empty()) {
    result["tokens"] = arguments.tokens;
  } else {
    result["data"] = arguments.data;
  }
  result.update({{"image_tower", arguments.image_tower},
                 {"steps", arguments.steps},
                 {"device", device.str()},
                 {"threads", at::get_num_threads()},
                 {"samples_per_s", static_cast<double>(arguments.batch_size) / median(seconds)},
                 {"step_s_median", median(seconds)},
                 {"step_s_min", seconds.front()},
                 {"peak_memory_mb", peak_memory() / 1e6}});
  if (profile) {
    result["profile"] = profile->result(arguments.steps, std::accumulate(seconds.begin(), seconds.end(), 0.0));
    result["profile"]["of"] = device.is_cuda() ? "launches only, on the host" : "time on the calling thread";
    fmt::print(stderr, "{}", profile_table(result["profile"]));
    if (device.is_cuda()) fmt::print(stderr, "These are times of launches on the host, not of the GPU's work.\n");
  }
  return result;
}

}  // namespace contrastive::tools
