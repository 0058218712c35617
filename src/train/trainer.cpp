#include "contrastive/train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <sstream>
#include <utility>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/log.h"
#include "contrastive/core/random.h"
#include "contrastive/data/classification_set.h"
#include "contrastive/data/synthetic.h"
#include "contrastive/data/train_loader.h"
#include "contrastive/distributed/gradient_reducer.h"
#include "contrastive/eval/checkpoint_source.h"
#include "contrastive/eval/preprocess_config.h"
#include "contrastive/models/clip_model.h"
#include "contrastive/models/precision.h"
#include "contrastive/optim/gradients.h"
#include "contrastive/optim/optimizer.h"
#include "contrastive/optim/parameter_shards.h"
#include "contrastive/train/checkpoint_saver.h"
#include "contrastive/train/image_tower.h"

#include "train/pace.h"
#include "train/run_data.h"
#include "train/starting_model.h"
#include "train/suite_evaluation.h"
#include "train/train_step.h"
#include "train/training_plan.h"
#include "train/zero_shot_evaluation.h"

namespace contrastive::train {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

data::SyntheticOptions synthetic_options(const SyntheticDataOptions& options, int64_t samples) {
  return {.seed = options.seed, .samples = samples, .image_size = options.image_size};
}

detail::TrainStepOptions step_options(const RunOptions& options) {
  detail::TrainStepOptions result;
  result.bf16 = options.precision == "amp_bf16";
  result.restorable = options.train.on_non_finite == "skip";
  result.accumulate = options.train.accumulate;
  result.locked_batch_size = locked_batch_size(options);
  result.reducer.bucket_bytes = options.distributed.bucket_mb << 20;
  result.reducer.bf16 = options.distributed.gradient_dtype == "bf16";
  return result;
}

/// Sums over the steps between two log lines.
struct StepTimes {
  double seconds = 0;
  double wait_ms = 0;
  double communication_ms = 0;
  int64_t steps = 0;
  int64_t bytes_read_before = 0;
};

}  // namespace

torch::Device choose_device(const std::string& name) {
  const bool has_cuda = at::hasCUDA();
  if (name == "cuda" && !has_cuda) throw ConfigError("device: cuda was asked for, but no CUDA device can be used");
  return name == "cuda" || (name == "auto" && has_cuda) ? torch::kCUDA : torch::kCPU;
}

void check_batch_split(const RunOptions& options, int64_t ranks) {
  const auto parts = ranks * options.train.accumulate;
  if (options.train.global_batch % parts == 0) return;
  throw ConfigError(
      fmt::format("train.global_batch: {} samples can't be split into {} ranks x {} equal parts (train.accumulate); a "
                  "multiple of {} is needed",
                  options.train.global_batch, ranks, options.train.accumulate, parts));
}

data::ClassificationSet open_classification_set(const std::string& name, const SyntheticDataOptions& synthetic) {
  if (name == "synthetic") return data::synthetic_classification(synthetic_options(synthetic, synthetic.test_samples));
  return data::open_classification_folder(name);
}

struct Trainer::Impl {
  Impl(const RunOptions& run_options, const ResumeRequest& resume, TrainerHooks trainer_hooks,
       const distributed::ProcessGroup& process_group, torch::Device own_device)
      : options(run_options),
        hooks(std::move(trainer_hooks)),
        group(process_group),
        device(own_device),
        directory(open_directory(resume)),
        config(models::load_model_config(options.model)),
        preprocess(eval::load_preprocess(options.preprocess, config.vision_cfg.image_size)),
        tokenizer_folder(detail::keep_tokenizer(options, config, is_first())),
        tokenizer(eval::open_tokenizer(config, tokenizer_folder)),
        source(open_data_in_turn()),
        length{detail::count_steps(options.train, source->size()), options.train.global_batch, source->size()},
        started(detail::make_starting_model(options, config, is_first(), !resume_from.empty())),
        model(on_device(started.model)),
        plan(detail::make_plan(options, length, model)),
        shards(plan.trained(), group, options.distributed.shard_optimizer),
        own_plan(plan.only(shards.owned())),
        optimizer(detail::make_optimizer(options, config, own_plan)),
        saver(options.run_directory(), group,
              {.keep = options.checkpoint.keep,
               .background = options.checkpoint.background,
               .sharded = options.distributed.shard_optimizer}) {
    if (options.distributed.sync_batch_norm) model->set_batch_norm_group(group);
    if (!options.eval.zero_shot.data.empty()) {
      evaluation = std::make_unique<detail::ZeroShotEvaluation>(
          options, preprocess, tokenizer, open_classification_set(options.eval.zero_shot.data, options.data.synthetic),
          group);
    }
    if (!options.eval.suite.empty()) {
      suite = std::make_unique<detail::SuiteEvaluation>(options, model, preprocess, tokenizer, group);
    }
    optimizer->renew_copies(models::compute_copies(*model));
    start_state();
    prepare_step();
    earlier_skipped_samples = state.skipped_samples;
    loader = std::make_unique<data::TrainLoader>(source, tokenizer,
                                                 detail::loader_options(options, config, group, device, state.step));
    if (is_first()) {
      write_file_atomically(options.run_directory() / "parameters.txt", detail::plan_text(options, plan));
      metrics = std::make_unique<MetricsWriter>(options.run_directory(), state.step, options.log.tensorboard);
    }
    pace = std::make_unique<detail::Pace>(options, state.step, group, hooks.stop_requested);
  }

  RunOptions options;
  TrainerHooks hooks;
  distributed::ProcessGroup group;
  torch::Device device;
  std::string resume_from;                  ///< "": from the start
  std::unique_ptr<RunDirectory> directory;  ///< of rank 0; sets the above
  models::ModelConfig config;
  image::PreprocessSpec preprocess;
  std::filesystem::path tokenizer_folder;
  std::shared_ptr<const text::Tokenizer> tokenizer;
  std::shared_ptr<const data::SampleSource> source;
  detail::RunLength length;
  detail::StartingModel started;
  models::ClipModel model;
  optim::ParameterPlan plan;
  optim::ParameterShards shards;
  optim::ParameterPlan own_plan;  ///< of what this rank updates
  std::unique_ptr<optim::Optimizer> optimizer;
  std::unique_ptr<detail::TrainStep> step;
  CheckpointSaver saver;
  std::unique_ptr<detail::ZeroShotEvaluation> evaluation;
  std::unique_ptr<detail::SuiteEvaluation> suite;
  RunState state;
  std::map<std::string, int64_t> earlier_skipped_samples;
  int64_t first_step = 0;
  std::optional<int64_t> saved_step, failed_step;
  std::string save_error;  ///< of failed_step
  std::unique_ptr<data::TrainLoader> loader;
  std::unique_ptr<MetricsWriter> metrics;  ///< of rank 0
  std::unique_ptr<detail::Pace> pace;
  StepTimes times;

  bool is_first() const { return group.rank() == 0; }

  std::unique_ptr<RunDirectory> open_directory(const ResumeRequest& resume) {
    check_batch_split(options, group.size());
    std::unique_ptr<RunDirectory> result;
    if (is_first()) result = std::make_unique<RunDirectory>(options, resume);
    const auto from = result && result->resume_from() ? result->resume_from()->string() : "";
    resume_from = group.broadcast_text(from);
    return result;
  }

  /// Rank 0 before the others, which then find its index of the shards. Making that may take longer than any time-out.
  std::shared_ptr<const data::SampleSource> open_data_in_turn() {
    constexpr const char* kIsIndexed = "training data is indexed";
    if (!is_first()) group.get_value(kIsIndexed);
    auto result = detail::open_training_data(options, config, *tokenizer);
    if (is_first() && !group.is_alone()) group.set_value(kIsIndexed, "yes");
    return result;
  }

  /// Step 0, or where the checkpoint to resume from stands.
  void start_state() {
    const auto config_hash = training_config_hash(options);
    const auto data_fingerprint = source->fingerprint();
    require_same_run_on_all_ranks(config_hash, data_fingerprint);
    if (!resume_from.empty()) {
      load(resume_from);
      check_same_run(resume_from, config_hash, data_fingerprint);
      if (is_first() && state.world_size != group.size()) {
        log(LogLevel::info,
            fmt::format("the checkpoint was written by {} ranks, {} go on from it", state.world_size, group.size()));
      }
      first_step = state.step;
      const bool is_own = std::filesystem::path(resume_from).parent_path() == options.run_directory() / "checkpoints";
      if (is_own) saved_step = state.step;
    }
    distributed::broadcast_all(model->state(), group);
    state.seed = options.seed;
    state.world_size = group.size();
    state.config_hash = config_hash;
    state.data_fingerprint = data_fingerprint;
  }

  void require_same_run_on_all_ranks(const std::string& config_hash, const std::string& data_fingerprint) const {
    const auto own = config_hash + " " + data_fingerprint;
    const auto all = group.all_gather_text(own);
    for (size_t rank = 1; rank < all.size(); ++rank) {
      if (all[rank] == all[0]) continue;
      const bool config_differs = !all[rank].starts_with(all[0].substr(0, all[0].find(' ')));
      throw ConfigError(fmt::format(
          "[run {}] rank {} has other {} than rank 0: all ranks need the same", options.run_directory().string(), rank,
          config_differs ? "training options" : "training data (shard names, sizes, counts)"));
    }
  }

  models::ClipModel on_device(models::ClipModel made) const {
    made->to(device);
    return made;
  }

  /// At the start, and whenever parameters are unlocked.
  void prepare_step() {
    detail::apply_locks(options, length, plan, state.step, model);
    step.reset();  // before another one lays hands on the gradients
    step = std::make_unique<detail::TrainStep>(model, preprocess, step_options(options), group);
  }

  bool unlocks_now() const {
    const auto steps = plan.unlock_steps();
    return std::find(steps.begin(), steps.end(), state.step) != steps.end();
  }

  /// Rank 0 reads the checkpoint and gives the others what it holds; with parts of the optimiser's state on every rank
  /// each reads its own.
  void load(const std::filesystem::path& folder) {
    if (is_first()) load_here(folder);
    const auto text = group.broadcast_text(is_first() ? to_text(state) : "");
    if (is_first()) return broadcast_optimizer();
    if (options.distributed.shard_optimizer) load_here(folder);
    state = run_state_from_text(text);
    broadcast_optimizer();
  }

  void broadcast_optimizer() {
    if (!options.distributed.shard_optimizer) distributed::broadcast_all(optimizer->state(), group);
  }

  void load_here(const std::filesystem::path& folder) {
    try {
      state = load_checkpoint(folder, model, *optimizer);
    } catch (const CheckpointError& error) {
      std::string others;
      for (const auto& other : CheckpointStore(options.run_directory(), options.checkpoint.keep).list()) {
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
    while (state.step < length.total_steps) {
      const auto due = pace->before_step(state.step, loader->bad_samples().total);
      report_saved(saver.result());
      if (due.checkpoint) save();
      if (due.evaluation) evaluate();
      if (due.stop) {
        pace->finish();
        save();
        require_saved();
        return RunOutcome::stopped;
      }
      check_bad_samples(due.bad_samples);
      train_one_step(due.bad_samples);
    }
    pace->finish();
    save();
    evaluate();
    require_saved();
    return RunOutcome::finished;
  }

  void check_bad_samples(int64_t of_all_ranks) const {
    if (of_all_ranks <= options.data.max_bad_samples) return;
    throw DataError(
        fmt::format("[run {}] {} bad samples on {} ranks together, at most {} may be skipped "
                    "(data.max_bad_samples); the ranks' logs name the first of each kind",
                    options.run_directory().string(), of_all_ranks, group.size(), options.data.max_bad_samples));
  }

  void train_one_step(int64_t bad_samples) {
    const auto start = Clock::now();
    const auto waited_before = group.waited();
    const auto batch = loader->next();
    if (state.step != first_step && unlocks_now()) prepare_step();
    const auto model_seed = RandomStream(state.seed, RandomPurpose::model, {state.step}).next();
    const auto result = step->forward_backward(batch, model_seed);
    const double lr = plan.base_learning_rate(state.step);
    update(result);
    optimizer->zero_grad();
    advance();
    times.seconds += seconds_since(start);
    times.wait_ms += loader->last_wait_ms();
    times.communication_ms += (group.waited() - waited_before).count() * 1000;
    ++times.steps;
    state.train_seconds += seconds_since(start);
    check_ranks_agree();
    report(result, lr, bad_samples);
  }

  void update(const detail::StepResult& result) {
    if (!result.is_finite()) return refuse_update(result);
    std::optional<torch::Tensor> divisor;
    if (options.optim.clip_norm) divisor = optim::clip_divisor(result.grad_norm_tensor, *options.optim.clip_norm);
    optimizer->step(own_plan.learning_rates(state.step), divisor);
    shards.exchange();
    if (options.optim.max_logit_scale) model->clamp_logit_scale(*options.optim.max_logit_scale);
  }

  void refuse_update(const detail::StepResult& result) {
    const auto first_bad = optim::first_non_finite(step->parameters());
    const auto what =
        fmt::format("step {}: loss is {}, gradient norm {}; first gradient that is not finite: {}", state.step + 1,
                    result.loss, result.grad_norm, first_bad.empty() ? "none" : first_bad);
    if (options.train.on_non_finite == "stop") {
      throw TrainingError(fmt::format(
          "[run {}] {}; weights are as before this step, checkpoints are intact (a lower optim.lr, optim.clip_norm or "
          "train.on_non_finite=skip may help)",
          options.run_directory().string(), what));
    }
    const bool is_news = state.skipped_steps++ == 0 && is_first();
    if (is_news) log(LogLevel::warning, what + "; the step is skipped, later ones are counted only");
    step->restore_buffers();
  }

  void advance() {
    ++state.step;
    state.samples_seen += options.train.global_batch;
  }

  void check_ranks_agree() const {
    const auto& every = options.distributed.check_every_steps;
    if (!every || state.step % *every != 0) return;
    const auto moment = fmt::format("after step {}", state.step);
    distributed::require_same_bits(options.distributed.sync_batch_norm ? model->state() : step->parameters(), group,
                                   moment);
  }

  /// Bad samples by reason, of all ranks and sessions.
  std::map<std::string, int64_t> count_skipped_samples() const {
    std::string own;
    for (const auto& [reason, count] : loader->bad_samples().by_reason) own += fmt::format("{}\t{}\n", reason, count);
    auto total = earlier_skipped_samples;
    for (const auto& text : group.all_gather_text(own)) {
      std::istringstream lines(text);
      for (std::string reason, count; std::getline(lines, reason, '\t') && std::getline(lines, count);) {
        total[reason] += std::stoll(count);
      }
    }
    return total;
  }

  /// `bad_samples`: of all ranks in this session.
  void report(const detail::StepResult& result, double lr, int64_t bad_samples) {
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
    m.communication_ms = times.communication_ms / steps;
    m.step_ms = times.seconds * 1000 / steps;
    m.read_mb = static_cast<double>(source->bytes_read() - times.bytes_read_before) / steps / 1e6;
    m.skipped_samples = group.is_alone() ? loader->bad_samples().total : bad_samples;
    for (const auto& [reason, count] : earlier_skipped_samples) m.skipped_samples += count;
    m.skipped_steps = state.skipped_steps;
    if (hooks.on_step) hooks.on_step(m);
    if (state.step == 1 || state.step % options.log.every_steps == 0 || state.step == length.total_steps) {
      if (metrics) metrics->write(m);
      times = {.bytes_read_before = source->bytes_read()};
    }
  }

  void evaluate() {
    if (!evaluation && !suite) return;
    share_buffers();
    if (evaluation) evaluate_zero_shot();
    if (suite) evaluate_suite();
    pace->evaluated();
  }

  void evaluate_zero_shot() {
    const auto start_time = Clock::now();
    EvaluationMetrics m;
    m.step = state.step;
    m.samples_seen = state.samples_seen;
    m.dataset = evaluation->name();
    m.zero_shot = evaluation->run(model);
    m.seconds = seconds_since(start_time);
    if (metrics) metrics->write(m);
    if (hooks.on_evaluation) hooks.on_evaluation(m);
  }

  void evaluate_suite() {
    for (auto& result : suite->run()) {
      const SuiteMetrics m{state.step, state.samples_seen, std::move(result)};
      if (metrics) metrics->write(m);
      if (hooks.on_suite_result) hooks.on_suite_result(m);
    }
  }

  /// Without batch norm over ranks each has statistics of its own; rank 0's count, as they do in checkpoints.
  void share_buffers() {
    if (options.distributed.sync_batch_norm) return;
    NamedTensors buffers;
    for (const auto& buffer : model->named_buffers()) buffers.emplace_back(buffer.key(), buffer.value());
    distributed::broadcast_all(buffers, group);
  }

  /// Starts writing a checkpoint, on all ranks at the same step.
  void save() {
    if (saved_step == state.step) return;
    report_saved(saver.wait());
    state.skipped_samples = count_skipped_samples();
    auto content = checkpoint_content(state, model, preprocess, *optimizer, tokenizer_folder);
    content.absent = started.absent;
    content.constant = detail::constant_weights(options, model);
    saver.start(content);
    saved_step = state.step;
    pace->saved();
    if (!options.checkpoint.background) report_saved(saver.wait());
  }

  /// Of the last checkpoint: its failure is the run's.
  void require_saved() {
    const auto saved = saver.wait();
    if (saved && !saved->error.empty()) throw CheckpointError(saved->error);
    report_saved(saved);
    if (failed_step == state.step) throw CheckpointError(save_error);
  }

  void report_saved(const std::optional<SavedCheckpoint>& saved) {
    if (!saved || !is_first()) return;
    if (saved->error.empty()) {
      if (hooks.on_checkpoint) hooks.on_checkpoint(saved->folder.string());
      return;
    }
    failed_step = saved->step;
    save_error = saved->error;
    log(LogLevel::error, fmt::format("{}; earlier checkpoints are intact, training goes on", save_error));
  }
};

Trainer::Trainer(const RunOptions& options, const ResumeRequest& resume, TrainerHooks hooks,
                 const distributed::ProcessGroup& group, std::optional<torch::Device> device) {
  if (options.threads > 0) at::set_num_threads(static_cast<int>(options.threads));
  const auto own_device = device ? *device : choose_device(options.device);
  impl_ = std::make_unique<Impl>(options, resume, std::move(hooks), group, own_device);
}

Trainer::~Trainer() = default;

RunSummary Trainer::summary() const {
  RunSummary summary;
  summary.parameters = models::parameter_count(impl_->config);
  summary.plan = detail::plan_text(impl_->options, impl_->plan);
  summary.train_samples = impl_->source->size();
  summary.total_steps = impl_->length.total_steps;
  summary.first_step = impl_->first_step;
  summary.device = impl_->device.str();
  summary.chance_loss = std::log(static_cast<double>(impl_->options.train.global_batch));
  return summary;
}

RunOutcome Trainer::run() {
  return impl_->run();
}

}  // namespace contrastive::train
