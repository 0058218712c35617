#include "adapt_common.h"

#include <utility>

#include <fmt/format.h>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"
#include "contrastive/core/log.h"
#include "contrastive/data/embedding_cache.h"
#include "contrastive/distributed/connect.h"
#include "contrastive/distributed/rank_environment.h"
#include "contrastive/eval/encoder.h"
#include "contrastive/eval/feature_cache.h"
#include "contrastive/train/trainer.h"

#include "common/ranks.h"
#include "common/validators.h"

namespace contrastive::tools {
namespace {

namespace fs = std::filesystem;

/// Images whose places are held in memory until they are written: 200 MB of RN50's.
constexpr int64_t kPlacesPerPart = 1024;

std::string digest_of(const std::string& text) {
  return sha256_hex({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

torch::Device device_of_this_rank() {
  return distributed::device_of_rank(distributed::read_rank_environment(), train::choose_device("auto"));
}

/// The parts of "a+b+c"; a file whose name holds a '+' is one part.
std::vector<std::string> split_names(const std::string& source) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= source.size();) {
    const auto end = fs::exists(source) ? source.size() : std::min(source.find('+', begin), source.size());
    parts.push_back(source.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

}  // namespace

void add_model_options(CLI::App& command, ModelArguments& arguments) {
  command
      .add_option("--checkpoint", arguments.checkpoint,
                  "a run, one of its checkpoints, a published model's folder, or a weights file")
      ->required();
  command.add_option("--model", arguments.model, "a shipped model's name or JSON file, for weights without a config");
  command.add_option("--precision", arguments.precision)
      ->check(CLI::IsMember({"fp32", "amp_bf16"}))
      ->capture_default_str();
  command.add_option("--batch-size", arguments.batch_size)->check(tools::positive())->capture_default_str();
  command.add_option("--workers", arguments.workers, "decoding threads")
      ->check(tools::positive())
      ->capture_default_str();
  command
      .add_option("--on-bad-sample", arguments.on_bad_sample,
                  "fail: stop at the first image that can't be read; skip: leave such images out, and count them")
      ->check(CLI::IsMember({"fail", "skip"}))
      ->capture_default_str();
  command.add_option("--cache", arguments.cache, "folder that keeps features of data sets for other runs");
  command.add_option("--nproc", arguments.nproc, "ranks to start on this machine")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command.add_option("--timeout-seconds", arguments.timeout_seconds, "how long ranks wait for one that doesn't answer")
      ->check(tools::positive())
      ->capture_default_str();
}

data::ClassificationSet open_set(const SetArguments& arguments) {
  data::ClassificationSetOptions options;
  options.split = arguments.split;
  options.class_names = arguments.class_names;
  options.class_ids = arguments.class_ids;
  auto set = data::open_classification_set(arguments.data, options);
  if (set.is_multi_label) throw DataError(fmt::format("[{}] adapters need one label an image", set.name));
  return set;
}

AdaptModel::AdaptModel(const ModelArguments& arguments)
    : AdaptModel(arguments,
                 meet_other_ranks("clip_adapt", distributed::read_rank_environment(), device_of_this_rank(),
                                  arguments.timeout_seconds, /*choose_threads=*/true),
                 device_of_this_rank()) {}

AdaptModel::AdaptModel(const ModelArguments& arguments, const AdaptModel& first)
    : AdaptModel(arguments, first.group_, device_of_this_rank()) {}

AdaptModel::AdaptModel(const ModelArguments& arguments, distributed::ProcessGroup group, torch::Device device)
    : arguments_(arguments), group_(std::move(group)) {
  if (!is_first()) set_log_level(LogLevel::error);
  eval::CheckpointRequest request;
  request.path = arguments.checkpoint;
  request.model = arguments.model;
  loaded_ = eval::load_model(request);
  tokenizer_ = eval::open_tokenizer(loaded_.model->config(), loaded_.folder);
  eval::EncoderOptions on_cpu;
  on_cpu.device = torch::Device(torch::kCPU);
  fingerprint_ = eval::Encoder(loaded_, tokenizer_, on_cpu).fingerprint();
  loaded_.model->to(device);
}

std::string AdaptModel::preprocess_words() const {
  image::TrainCropOptions none;
  none.kind = image::TrainCrop::none;
  return data::cached_preprocessing(loaded_.preprocess, none);
}

std::string AdaptModel::preprocess_sha256() const {
  return digest_of(preprocess_words());
}

eval::ImagePassOptions AdaptModel::image_pass(const std::string& what) {
  eval::ImagePassOptions pass;
  pass.batch_size = arguments_.batch_size;
  pass.workers = arguments_.workers;
  pass.bf16 = bf16();
  pass.skip_bad_samples = arguments_.on_bad_sample == "skip";
  progress_.reset();
  if (!is_first()) return pass;
  pass.on_progress = [this, what](int64_t done, int64_t total) {
    if (!progress_) progress_.emplace(what + " ", 0, total, stderr);
    progress_->update(done);
  };
  return pass;
}

adapt::LabelledQueries AdaptModel::features(const data::ClassificationSet& set, const std::string& what, bool places) {
  const auto size = set.source->size();
  auto pass = image_pass(what);
  if (places) pass.stage = eval::FeatureStage::places;
  int64_t skipped = 0;
  const auto collect = [&](int64_t begin, int64_t end) {
    auto found = eval::collect_features(loaded_.model, loaded_.preprocess, *set.source, begin, end, pass, group_);
    skipped += found.skipped.count;
    for (const auto& each : found.skipped.first) {
      log(LogLevel::warning, fmt::format("{} left out: {}", each.name, each.reason));
    }
    return eval::LabelledFeatures{std::move(found.features), std::move(found.labels)};
  };
  eval::LabelledFeatures result;
  if (arguments_.cache.empty()) {
    result = collect(0, size);
  } else {
    eval::FeatureCacheOptions options;
    options.folder = fs::path(arguments_.cache) / "features";
    options.num_samples = size;
    if (places) options.samples_per_part = kPlacesPerPart;
    options.settings = {{"model", fingerprint_},
                        {"data", digest_of(set.source->fingerprint())},
                        {"classes", std::to_string(set.class_names.size())},
                        {"stage", places ? "places" : "embedding"},
                        {"precision", arguments_.precision},
                        {"bad_samples", arguments_.on_bad_sample}};
    result = eval::cached_features(options, collect, group_);
  }
  if (skipped > 0 && is_first()) fmt::print(stderr, "{} images of {} left out\n", skipped, set.name);
  const auto width = loaded_.model->config().embed_dim;
  if (!places) return {{result.features, {}}, result.labels};
  return {{result.features.slice(1, 0, width).contiguous(), result.features.slice(1, width).unflatten(1, {-1, width})},
          result.labels};
}

eval::ClassPrompts AdaptModel::prompts(const std::string& source, const data::ClassificationSet& set) {
  std::optional<eval::ClassPrompts> prompts;
  for (const auto& name : split_names(source)) {
    auto part = eval::class_prompts(name, set);
    prompts = prompts ? adapt::join_prompts(*prompts, part) : std::move(part);
  }
  return *prompts;
}

adapt::TextClassifier AdaptModel::classifier(const eval::ClassPrompts& prompts, const data::ClassificationSet& set,
                                             adapt::PromptPooling pooling) {
  return adapt::encode_text_classifier(loaded_.model, *tokenizer_, prompts, set.class_names, pooling, bf16(), group_);
}

}  // namespace contrastive::tools
