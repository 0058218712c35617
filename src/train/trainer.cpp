#include "contrastive/train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/log.h"
#include "contrastive/core/random.h"
#include "contrastive/data/classification_set.h"
#include "contrastive/data/shard_list.h"
#include "contrastive/data/synthetic.h"
#include "contrastive/data/train_loader.h"
#include "contrastive/data/webdataset_source.h"
#include "contrastive/eval/checkpoint_source.h"
#include "contrastive/eval/preprocess_config.h"
#include "contrastive/eval/zero_shot.h"
#include "contrastive/models/clip_model.h"
#include "contrastive/optim/adamw.h"
#include "contrastive/optim/gradients.h"
#include "contrastive/optim/schedule.h"
#include "contrastive/train/checkpoint.h"

#include "train/train_step.h"

namespace contrastive::train {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kGpuPrefetchBatches = 4;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Says when something that happens every so many steps or minutes is due.
class Interval {
 public:
  Interval(std::optional<int64_t> every_steps, std::optional<double> every_minutes, int64_t first_step)
      : every_steps_(every_steps), every_minutes_(every_minutes), first_step_(first_step) {}

  /// By steps: at the multiples, also right after resuming at one; by minutes: counted from the last time.
  bool due(int64_t step) const {
    const bool by_steps = every_steps_ && step > 0 && step % *every_steps_ == 0;
    const bool by_time = every_minutes_ && step > first_step_ && seconds_since(last_) >= *every_minutes_ * 60;
    return by_steps || by_time;
  }

  void restart() { last_ = Clock::now(); }

 private:
  std::optional<int64_t> every_steps_;
  std::optional<double> every_minutes_;
  int64_t first_step_;
  Clock::time_point last_ = Clock::now();
};

torch::Device choose_device(const std::string& name) {
  const bool has_cuda = at::hasCUDA();
  if (name == "cuda" && !has_cuda) throw ConfigError("device: cuda was asked for, but no CUDA device can be used");
  return name == "cuda" || (name == "auto" && has_cuda) ? torch::kCUDA : torch::kCPU;
}

data::SyntheticOptions synthetic_options(const SyntheticDataOptions& options, int64_t samples) {
  return {.seed = options.seed, .samples = samples, .image_size = options.image_size};
}

std::shared_ptr<const data::SampleSource> open_training_data(const DataOptions& options) {
  if (options.train == "synthetic") {
    return std::make_shared<data::SyntheticSource>(synthetic_options(options.synthetic, options.synthetic.samples));
  }
  const auto shards = data::expand_shard_list(options.train);
  data::require_shards_exist(shards);
  data::WebdatasetOptions source_options;
  source_options.image_keys = options.image_keys;
  source_options.caption_key = options.caption_key;
  return std::make_shared<data::WebdatasetSource>(data::ShardIndex::open(shards), source_options);
}

data::TrainLoaderOptions loader_options(const RunOptions& options, const models::ModelConfig& config,
                                        torch::Device device, int64_t first_step) {
  data::TrainLoaderOptions result;
  result.batch_size = options.train.global_batch;
  result.image_size = config.vision_cfg.image_size;
  result.context_length = config.text_cfg.context_length;
  result.cut_tokens = config.text_cfg.may_cut_padding();
  result.crop.kind =
      options.data.crop.kind == "random_square" ? image::TrainCrop::random_square : image::TrainCrop::random_resized;
  result.crop.scale_min = options.data.crop.scale_min;
  result.crop.scale_max = options.data.crop.scale_max;
  result.seed = static_cast<uint64_t>(options.seed);
  result.workers = options.data.workers;
  result.prefetch_batches = options.data.prefetch_batches.value_or(device.is_cuda() ? kGpuPrefetchBatches : 0);
  result.on_bad_sample =
      options.data.on_bad_sample == "skip" ? data::BadSamplePolicy::skip : data::BadSamplePolicy::fail;
  result.max_bad_samples = options.data.max_bad_samples;
  result.pin_memory = device.is_cuda();
  result.first_step = first_step;
  return result;
}

int64_t count_steps(const TrainOptions& options, int64_t num_samples) {
  if (options.steps) return *options.steps;
  const double samples =
      options.samples ? static_cast<double>(*options.samples) : *options.epochs * static_cast<double>(num_samples);
  return std::max<int64_t>(1, std::llround(std::ceil(samples / static_cast<double>(options.global_batch))));
}

optim::Schedule make_schedule(const OptimizerOptions& options, int64_t total_steps) {
  return optim::Schedule(options.schedule, options.lr, options.warmup_steps, total_steps, options.cooldown_steps,
                         options.cooldown_power, options.cooldown_end_lr);
}

optim::AdamW make_optimizer(const OptimizerOptions& options, const NamedTensors& parameters) {
  return optim::AdamW(
      parameters,
      {.beta1 = options.beta1, .beta2 = options.beta2, .eps = options.eps, .weight_decay = options.weight_decay},
      optim::decay_rule(options.decay_rule));
}

models::ClipModel make_model(const models::ModelConfig& config, int64_t seed, torch::Device device) {
  models::ClipModel model(config);
  model->reset_parameters(at::make_generator<at::CPUGeneratorImpl>(static_cast<uint64_t>(seed)));
  model->to(device);
  return model;
}

/// The vocabulary of a model that doesn't use CLIP's, copied into the run once; checkpoints carry it.
std::filesystem::path keep_tokenizer(const RunOptions& options, const models::ModelConfig& config,
                                     const std::filesystem::path& run) {
  const auto kept = run / "tokenizer";
  if (config.text_cfg.hf_tokenizer_name.empty() || std::filesystem::is_directory(kept)) return kept;
  std::filesystem::path origin = options.tokenizer.empty() ? options.weights : options.tokenizer;
  if (!std::filesystem::is_directory(origin)) origin = origin.parent_path();
  eval::open_tokenizer(config, origin);  // an error here leaves nothing behind
  std::filesystem::create_directories(kept);
  eval::copy_tokenizer_files(origin, kept);
  return kept;
}

/// Sums over the steps between two log lines.
struct StepTimes {
  double seconds = 0;
  double wait_ms = 0;
  int64_t steps = 0;
};

}  // namespace

data::ClassificationSet open_classification_set(const std::string& name, const SyntheticDataOptions& synthetic) {
  if (name == "synthetic") return data::synthetic_classification(synthetic_options(synthetic, synthetic.test_samples));
  return data::open_classification_folder(name);
}

struct Trainer::Impl {
  Impl(const RunOptions& run_options, const ResumeRequest& resume, TrainerHooks trainer_hooks)
      : options(run_options),
        hooks(std::move(trainer_hooks)),
        device(choose_device(options.device)),
        directory(options, resume),
        config(models::load_model_config(options.model)),
        preprocess(eval::load_preprocess(options.preprocess, config.vision_cfg.image_size)),
        tokenizer_folder(keep_tokenizer(options, config, directory.path())),
        tokenizer(eval::open_tokenizer(config, tokenizer_folder)),
        source(open_training_data(options.data)),
        total_steps(count_steps(options.train, source->size())),
        schedule(make_schedule(options.optim, total_steps)),
        model(make_model(config, options.seed, device)),
        step(model, preprocess, options.precision == "amp_bf16", options.train.on_non_finite == "skip",
             options.train.accumulate),
        optimizer(make_optimizer(options.optim, step.parameters())),
        checkpoints(directory.path(), options.checkpoint.keep) {
    if (!options.eval.zero_shot.data.empty()) {
      test_set = open_classification_set(options.eval.zero_shot.data, options.data.synthetic);
    }
    start_state();
    earlier_skipped_samples = state.skipped_samples;
    loader =
        std::make_unique<data::TrainLoader>(source, tokenizer, loader_options(options, config, device, state.step));
    metrics = std::make_unique<MetricsWriter>(directory.path(), state.step, options.log.tensorboard);
    checkpoint_interval.emplace(options.checkpoint.every_steps, options.checkpoint.every_minutes, state.step);
    evaluation_interval.emplace(options.eval.every_steps, options.eval.every_minutes, state.step);
  }

  RunOptions options;
  TrainerHooks hooks;
  torch::Device device;
  RunDirectory directory;
  models::ModelConfig config;
  image::PreprocessSpec preprocess;
  std::filesystem::path tokenizer_folder;
  std::shared_ptr<const text::Tokenizer> tokenizer;
  std::shared_ptr<const data::SampleSource> source;
  int64_t total_steps;
  optim::Schedule schedule;
  models::ClipModel model;
  detail::TrainStep step;
  optim::AdamW optimizer;
  CheckpointStore checkpoints;
  std::optional<data::ClassificationSet> test_set;
  RunState state;
  std::map<std::string, int64_t> earlier_skipped_samples;
  int64_t first_step = 0;
  std::optional<int64_t> saved_step;
  std::unique_ptr<data::TrainLoader> loader;
  std::unique_ptr<MetricsWriter> metrics;
  std::optional<Interval> checkpoint_interval;
  std::optional<Interval> evaluation_interval;
  StepTimes times;

  /// Step 0, or where the checkpoint to resume from stands.
  void start_state() {
    const auto config_hash = training_config_hash(options);
    const auto data_fingerprint = source->fingerprint();
    if (const auto& folder = directory.resume_from()) {
      load(*folder);
      check_same_run(*folder, config_hash, data_fingerprint);
      first_step = state.step;
      if (folder->parent_path() == directory.path() / "checkpoints") saved_step = state.step;
    } else if (!options.weights.empty()) {
      load_weights();
    }
    state.seed = options.seed;
    state.config_hash = config_hash;
    state.data_fingerprint = data_fingerprint;
  }

  void load_weights() {
    const auto start = eval::open_checkpoint({.path = options.weights, .config = config});
    model->load_state(start.tensors);
  }

  void load(const std::filesystem::path& folder) {
    try {
      state = load_checkpoint(folder, model, optimizer);
    } catch (const CheckpointError& error) {
      std::string others;
      for (const auto& other : checkpoints.list()) {
        if (other != folder) others += (others.empty() ? "" : ", ") + other.string();
      }
      if (others.empty()) throw;
      throw CheckpointError(fmt::format("{}; to go on from another one: --resume PATH with {}", error.what(), others));
    }
  }

  void check_same_run(const std::filesystem::path& folder, const std::string& config_hash,
                      const std::string& data_fingerprint) const {
    if (state.data_fingerprint != data_fingerprint) {
      throw CheckpointError(
          fmt::format("[checkpoint {}] was trained on other data than {}: the shards' names, sizes or sample counts "
                      "differ; start a new run for them",
                      folder.string(), options.data.train));
    }
    if (state.config_hash != config_hash) {
      throw CheckpointError(
          fmt::format("[checkpoint {}] was made with other training options; go on with the "
                      "config.yaml of its run",
                      folder.string()));
    }
  }

  RunOutcome run() {
    model->train();
    while (state.step < total_steps) {
      if (checkpoint_interval->due(state.step)) try_to_save();
      if (evaluation_interval->due(state.step)) evaluate();
      if (hooks.stop_requested && hooks.stop_requested()) {
        save();
        return RunOutcome::stopped;
      }
      train_one_step();
    }
    save();
    evaluate();
    return RunOutcome::finished;
  }

  void train_one_step() {
    const auto start = Clock::now();
    const auto batch = loader->next();
    const auto model_seed = RandomStream(state.seed, RandomPurpose::model, {state.step}).next();
    const auto result = step.forward_backward(batch, model_seed);
    const double lr = schedule.at(state.step);
    update(result, lr);
    optimizer.zero_grad();
    advance(batch);
    times.seconds += seconds_since(start);
    times.wait_ms += loader->last_wait_ms();
    ++times.steps;
    state.train_seconds += seconds_since(start);
    report(result, lr);
  }

  void update(const detail::StepResult& result, double lr) {
    if (!result.is_finite()) return refuse_update(result);
    std::optional<torch::Tensor> divisor;
    if (options.optim.clip_norm) divisor = optim::clip_divisor(result.grad_norm_tensor, *options.optim.clip_norm);
    optimizer.step(lr, divisor);
    model->clamp_logit_scale();
  }

  void refuse_update(const detail::StepResult& result) {
    const auto first_bad = optim::first_non_finite(step.parameters());
    const auto what =
        fmt::format("step {}: loss is {}, gradient norm {}; first gradient that is not finite: {}", state.step + 1,
                    result.loss, result.grad_norm, first_bad.empty() ? "none" : first_bad);
    if (options.train.on_non_finite == "stop") {
      throw TrainingError(fmt::format(
          "[run {}] {}; weights are as before this step, checkpoints are intact (a lower optim.lr, optim.clip_norm or "
          "train.on_non_finite=skip may help)",
          directory.path().string(), what));
    }
    if (state.skipped_steps++ == 0) log(LogLevel::warning, what + "; the step is skipped, later ones are counted only");
    step.restore_buffers();
  }

  void advance(const data::Batch& batch) {
    ++state.step;
    state.samples_seen += batch.images.size(0);
    state.skipped_samples = earlier_skipped_samples;
    for (const auto& [reason, count] : loader->bad_samples().by_reason) state.skipped_samples[reason] += count;
  }

  void report(const detail::StepResult& result, double lr) {
    StepMetrics m;
    m.step = state.step;
    m.samples_seen = state.samples_seen;
    m.loss = result.loss;
    m.accuracy = result.accuracy;
    m.logit_scale = result.logit_scale;
    m.lr = lr;
    m.grad_norm = result.grad_norm;
    const auto steps = static_cast<double>(times.steps);
    m.samples_per_s = static_cast<double>(options.train.global_batch) * steps / times.seconds;
    m.data_wait_ms = times.wait_ms / steps;
    m.step_ms = times.seconds * 1000 / steps;
    for (const auto& [reason, count] : state.skipped_samples) m.skipped_samples += count;
    m.skipped_steps = state.skipped_steps;
    if (hooks.on_step) hooks.on_step(m);
    if (state.step == 1 || state.step % options.log.every_steps == 0 || state.step == total_steps) {
      metrics->write(m);
      times = {};
    }
  }

  void evaluate() {
    if (!test_set) return;
    const auto start = Clock::now();
    eval::ZeroShotOptions zero_shot;
    zero_shot.batch_size = options.eval.zero_shot.batch_size;
    zero_shot.workers = options.data.workers;
    zero_shot.bf16 = options.precision == "amp_bf16";
    EvaluationMetrics m;
    m.step = state.step;
    m.samples_seen = state.samples_seen;
    m.dataset = test_set->name;
    m.zero_shot = eval::evaluate_zero_shot(model, preprocess, *tokenizer, *test_set, zero_shot);
    m.seconds = seconds_since(start);
    metrics->write(m);
    if (hooks.on_evaluation) hooks.on_evaluation(m);
    evaluation_interval->restart();
  }

  void save() {
    if (saved_step == state.step) return;
    checkpoints.save(state, model, preprocess, optimizer, tokenizer_folder);
    saved_step = state.step;
    checkpoint_interval->restart();
    if (hooks.on_checkpoint) hooks.on_checkpoint(checkpoints.latest()->string());
  }

  /// A save in the middle of a run may fail (disk full): training goes on, and the next one may succeed.
  void try_to_save() {
    try {
      save();
    } catch (const CheckpointError& error) {
      log(LogLevel::error, fmt::format("{}; earlier checkpoints are intact, training goes on", error.what()));
      checkpoint_interval->restart();
    }
  }
};

Trainer::Trainer(const RunOptions& options, const ResumeRequest& resume, TrainerHooks hooks) {
  if (options.threads > 0) at::set_num_threads(static_cast<int>(options.threads));
  impl_ = std::make_unique<Impl>(options, resume, std::move(hooks));
}

Trainer::~Trainer() = default;

RunSummary Trainer::summary() const {
  RunSummary summary;
  summary.parameters = models::parameter_count(impl_->config);
  summary.train_samples = impl_->source->size();
  summary.total_steps = impl_->total_steps;
  summary.first_step = impl_->first_step;
  summary.device = impl_->device.str();
  summary.chance_loss = std::log(static_cast<double>(impl_->options.train.global_batch));
  return summary;
}

RunOutcome Trainer::run() {
  return impl_->run();
}

}  // namespace contrastive::train
