#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "contrastive/core/config_node.h"
#include "contrastive/core/export.h"
#include "contrastive/core/options.h"

namespace contrastive::train {

/// The built-in procedural data: used when data.train is `synthetic`, or eval.zero_shot.data is.
struct SyntheticDataOptions {
  int64_t seed = 0;
  int64_t samples = 100'000;
  int64_t image_size = 64;
  int64_t test_samples = 2'000;

  template <typename Fields>
  void fields(Fields& f) {
    f("seed", seed);
    f("samples", samples, at_least(1));
    f("image_size", image_size, between(16, 4096));
    f("test_samples", test_samples, at_least(1));
  }
};

struct CropOptions {
  std::string kind = "random_resized";
  double scale_min = 0.9;
  double scale_max = 1.0;
  std::string jpeg_scaling = "none";  ///< or dct: image::JpegScaling
  double jpeg_scaling_ratio = 1.5;

  template <typename Fields>
  void fields(Fields& f) {
    f("kind", kind, one_of({"random_resized", "random_square", "none"}));
    f("scale_min", scale_min, {.minimum = 0, .maximum = 1, .minimum_excluded = true});
    f("scale_max", scale_max, {.minimum = 0, .maximum = 1, .minimum_excluded = true});
    f("jpeg_scaling", jpeg_scaling, one_of({"none", "dct"}));
    f("jpeg_scaling_ratio", jpeg_scaling_ratio, {.minimum = 1, .maximum = 8});
  }

  void validate(const OptionScope& scope) const {
    if (scale_min > scale_max) scope.fail("scale_min", "must not be greater than scale_max");
  }
};

struct DataOptions {
  std::string train;  ///< shard list, or `synthetic`
  std::string image_keys = "jpg;jpeg;png;webp";
  std::string caption_key = "txt";  ///< a member's extension, or json:FIELD
  CropOptions crop;
  int64_t workers = 2;                      ///< threads that decode
  std::optional<int64_t> prefetch_batches;  ///< null: 0 on a CPU, 4 on a GPU
  std::string on_bad_sample = "fail";
  int64_t max_bad_samples = 1000;  ///< of a run; more is an error
  SyntheticDataOptions synthetic;

  template <typename Fields>
  void fields(Fields& f) {
    f("train", train, required());
    f("image_keys", image_keys);
    f("caption_key", caption_key);
    f("crop", crop);
    f("workers", workers, between(1, 1024));
    f("prefetch_batches", prefetch_batches, between(0, 1024));
    f("on_bad_sample", on_bad_sample, one_of({"fail", "skip"}));
    f("max_bad_samples", max_bad_samples, at_least(0));
    f("synthetic", synthetic);
  }
};

/// How long to train: exactly one of steps, samples and epochs.
struct TrainOptions {
  std::optional<int64_t> steps;
  std::optional<int64_t> samples;
  std::optional<double> epochs;
  int64_t global_batch = 256;
  int64_t accumulate = 1;  ///< parts that a batch is forwarded in, for memory; the gradient stays the whole batch's
  std::string on_non_finite = "stop";

  template <typename Fields>
  void fields(Fields& f) {
    f("steps", steps, at_least(1));
    f("samples", samples, at_least(1));
    f("epochs", epochs, greater_than(0));
    f("global_batch", global_batch, at_least(2));
    f("accumulate", accumulate, at_least(1));
    f("on_non_finite", on_non_finite, one_of({"stop", "skip"}));
  }

  void validate(const OptionScope& scope) const {
    if (steps.has_value() + samples.has_value() + epochs.has_value() != 1) {
      scope.fail("", "give exactly one of steps, samples and epochs");
    }
    if (accumulate >= 1 && global_batch % accumulate != 0) {
      scope.fail("accumulate", "must divide global_batch, " + std::to_string(global_batch));
    }
  }
};

/// Settings of the parameters whose whole name a regular expression matches; of the rules that match a parameter and
/// name a setting, the first decides it.
struct ParameterRuleOptions {
  std::string match;
  std::optional<double> lr;     ///< multiplier
  std::optional<double> decay;  ///< multiplier; a rule with it decides alone whether the parameter decays
  bool freeze = false;
  std::optional<std::string> unlock_at;  ///< a duration: no update before that step

  template <typename Fields>
  void fields(Fields& f) {
    f("match", match, required());
    f("lr", lr, greater_than(0));
    f("decay", decay, at_least(0));
    f("freeze", freeze);
    f("unlock_at", unlock_at);
  }
};

/// What only Adafactor has. Source: big_vision's scale_by_adafactor.
struct AdafactorFields {
  double beta2_cap = 0.999;
  std::optional<double> momentum = 0.9;
  std::string momentum_dtype = "bf16";
  std::optional<double> clipping_threshold;

  template <typename Fields>
  void fields(Fields& f) {
    f("beta2_cap", beta2_cap, between(0, 0.9999999));
    f("momentum", momentum, between(0, 0.9999999));
    f("momentum_dtype", momentum_dtype, one_of({"bf16", "fp32"}));
    f("clipping_threshold", clipping_threshold, greater_than(0));
  }
};

/// Durations are texts such as `10000 steps`, `5e6 samples`, `2 epochs` or `3 %` (of the run).
struct OptimizerOptions {
  std::string name = "adamw";
  double lr = 5e-4;
  double beta1 = 0.9;
  double beta2 = 0.98;
  double eps = 1e-6;
  double weight_decay = 0.2;
  std::string decay_rule = "open_clip_3";
  /// `coupled`: a step takes lr * weight_decay off (AdamW). `schedule_only`: the schedule's factor * weight_decay,
  /// whatever lr is (big_vision).
  std::string decay_convention = "coupled";
  int64_t warmup_steps = 100;
  std::optional<std::string> warmup;  ///< a duration, instead of warmup_steps
  /// The rate of the first step: `first_step`: 1 / warmup_steps of lr (open_clip); `zero`: nothing (big_vision).
  std::string warmup_from = "first_step";
  std::string schedule = "cosine";
  int64_t cooldown_steps = 0;
  std::optional<std::string> cooldown;  ///< a duration, instead of cooldown_steps
  double cooldown_power = 1.0;
  double cooldown_end_lr = 0.0;
  double end = 0;            ///< linear and polynomial: the last rate, as a share of lr
  double power = 1;          ///< polynomial
  double timescale = 10000;  ///< rsqrt, in steps
  std::optional<double> clip_norm;
  std::optional<double> max_logit_scale = 100;  ///< exp(logit_scale) stays in [1, this]; null: it is free
  AdafactorFields adafactor;
  std::vector<ParameterRuleOptions> rules;

  template <typename Fields>
  void fields(Fields& f) {
    f("name", name, one_of({"adamw", "adafactor", "lion"}));
    f("lr", lr, greater_than(0));
    f("beta1", beta1, between(0, 0.9999999));
    f("beta2", beta2, between(0, 0.9999999));
    f("eps", eps, greater_than(0));
    f("weight_decay", weight_decay, at_least(0));
    f("decay_rule", decay_rule, one_of({"open_clip_3", "open_clip_main", "kernels", "all", "none"}));
    f("decay_convention", decay_convention, one_of({"coupled", "schedule_only"}));
    f("warmup_steps", warmup_steps, at_least(0));
    f("warmup", warmup);
    f("warmup_from", warmup_from, one_of({"first_step", "zero"}));
    f("schedule", schedule, one_of({"cosine", "constant", "constant_cooldown", "linear", "polynomial", "rsqrt"}));
    f("cooldown_steps", cooldown_steps, at_least(0));
    f("cooldown", cooldown);
    f("cooldown_power", cooldown_power, greater_than(0));
    f("cooldown_end_lr", cooldown_end_lr, at_least(0));
    f("end", end, at_least(0));
    f("power", power, greater_than(0));
    f("timescale", timescale, greater_than(0));
    f("clip_norm", clip_norm, greater_than(0));
    f("max_logit_scale", max_logit_scale, greater_than(1));
    f("adafactor", adafactor);
    f("rules", rules);
  }

  void validate(const OptionScope& scope) const {
    const bool has_cooldown = cooldown_steps > 0 || cooldown.has_value();
    if (schedule == "constant_cooldown" && !has_cooldown) {
      scope.fail("cooldown_steps", "must be at least 1 with constant_cooldown");
    }
    const bool may_cool_down = schedule == "constant_cooldown" || schedule == "rsqrt";
    if (!may_cool_down && has_cooldown) {
      scope.fail("cooldown_steps", "has no meaning without constant_cooldown or rsqrt");
    }
  }
};

/// A tower's own start and what of it is trained.
struct TowerOptions {
  std::string checkpoint;                ///< FILE[:subtree] or a folder; "": that of `weights`, or random
  int64_t unlocked_groups = 0;           ///< of a locked tower: layer groups, counted from the head, that are trained
  std::optional<std::string> unlock_at;  ///< of a locked tower: a duration, from which on all of it is trained
  bool lock_head = false;                ///< the projection of a locked tower is locked, too

  template <typename Fields>
  void fields(Fields& f) {
    f("checkpoint", checkpoint);
    f("unlocked_groups", unlocked_groups, at_least(0));
    f("unlock_at", unlock_at);
    f("lock_head", lock_head);
  }
};

struct ImageTowerOptions : TowerOptions {
  std::optional<int64_t> batch_size;  ///< images that a locked tower forwards at a time; null: a rank's batch at once
  std::string cache;                  ///< folder with its embeddings of the training set; "": none

  template <typename Fields>
  void fields(Fields& f) {
    TowerOptions::fields(f);
    f("batch_size", batch_size, at_least(1));
    f("cache", cache);
  }
};

struct CheckpointOptions {
  std::optional<int64_t> every_steps = 1000;
  std::optional<double> every_minutes = 30;
  int64_t keep = 3;
  bool background = true;  ///< write while training goes on, from a copy in memory

  template <typename Fields>
  void fields(Fields& f) {
    f("every_steps", every_steps, at_least(1));
    f("every_minutes", every_minutes, greater_than(0));
    f("keep", keep, at_least(1));
    f("background", background);
  }
};

struct ZeroShotDataOptions {
  std::string data;  ///< a folder in CLIP_benchmark's layout, `synthetic`, or "" for none
  int64_t batch_size = 256;
  std::string prompts;        ///< a prompt set (see text::prompt_set); "": the folder's templates
  bool canonicalize = false;  ///< class names and templates in lower case without punctuation

  template <typename Fields>
  void fields(Fields& f) {
    f("data", data);
    f("batch_size", batch_size, at_least(1));
    f("prompts", prompts);
    f("canonicalize", canonicalize);
  }
};

/// Evaluation while training; it also runs after the last step.
struct EvaluationOptions {
  std::optional<int64_t> every_steps;
  std::optional<double> every_minutes;
  ZeroShotDataOptions zero_shot;
  std::string suite;  ///< a file with further evaluations (see eval::load_suite); "": none

  template <typename Fields>
  void fields(Fields& f) {
    f("every_steps", every_steps, at_least(1));
    f("every_minutes", every_minutes, greater_than(0));
    f("zero_shot", zero_shot);
    f("suite", suite);
  }
};

/// How ranks work together; without effect for a process alone. None of it changes what is learned but for rounding.
struct DistributedOptions {
  double timeout_seconds = 600;  ///< how long ranks wait for one that doesn't answer
  int64_t bucket_mb = 25;        ///< gradients sent at a time
  std::string gradient_dtype = "fp32";
  bool shard_optimizer = false;              ///< each rank holds the optimiser's state of its share of the parameters
  bool sync_batch_norm = true;               ///< batch norm over the global batch; false: over each rank's part
  std::optional<int64_t> check_every_steps;  ///< compare the parameters of all ranks bit by bit

  template <typename Fields>
  void fields(Fields& f) {
    f("timeout_seconds", timeout_seconds, {.minimum = 0.5, .maximum = 86'400});
    f("bucket_mb", bucket_mb, between(1, 4096));
    f("gradient_dtype", gradient_dtype, one_of({"fp32", "bf16"}));
    f("shard_optimizer", shard_optimizer);
    f("sync_batch_norm", sync_batch_norm);
    f("check_every_steps", check_every_steps, at_least(1));
  }
};

struct LogOptions {
  int64_t every_steps = 10;
  bool tensorboard = true;

  template <typename Fields>
  void fields(Fields& f) {
    f("every_steps", every_steps, at_least(1));
    f("tensorboard", tensorboard);
  }
};

/// Everything a run is: the schema of a training config. Keys are documented in docs/configuration.md.
struct CONTRASTIVE_API RunOptions {
  std::string name;
  std::string output = "runs";
  int64_t seed = 0;
  std::string precision = "fp32";
  std::string device = "auto";
  int64_t threads = 0;    ///< compute threads of each rank; 0: the machine's cores shared by its ranks
  ConfigNode model;       ///< a shipped name, a JSON file, or open_clip's model JSON itself; null: that of `weights`
  std::string weights;    ///< a checkpoint to start from (see eval::CheckpointRequest); "": random weights
  std::string tokenizer;  ///< folder with the vocabulary of a model that doesn't use CLIP's; "": that of the weights
  /// A letter for the image tower and one for the text tower. L: from a checkpoint and locked; U: from a checkpoint and
  /// trained; u: random and trained. "": trained, from whatever checkpoints are given. Source: Zhai et al. 2022 (LiT).
  std::string lock;
  ImageTowerOptions image;
  TowerOptions text;
  ConfigNode preprocess = ConfigNode::make_map();
  DataOptions data;
  TrainOptions train;
  OptimizerOptions optim;
  CheckpointOptions checkpoint;
  EvaluationOptions eval;
  DistributedOptions distributed;
  LogOptions log;
  ConfigNode where_to_get = ConfigNode::make_map();  ///< by key (`image.checkpoint`): said if that is not there

  template <typename Fields>
  void fields(Fields& f) {
    f("name", name, required());
    f("output", output);
    f("seed", seed, at_least(0));
    f("precision", precision, one_of({"fp32", "amp_bf16"}));
    f("device", device, one_of({"auto", "cpu", "cuda"}));
    f("threads", threads, between(0, 4096));
    f("model", model);
    f("weights", weights);
    f("tokenizer", tokenizer);
    f("lock", lock, one_of({"", "LL", "LU", "Lu", "UL", "UU", "Uu", "uL", "uU", "uu"}));
    f("image", image);
    f("text", text);
    f("preprocess", preprocess);
    f("data", data);
    f("train", train);
    f("optim", optim);
    f("checkpoint", checkpoint);
    f("eval", eval);
    f("distributed", distributed);
    f("log", log);
    f("where_to_get", where_to_get);
  }

  void validate(const OptionScope& scope) const;

  bool locks_image() const { return lock.starts_with('L'); }
  bool locks_text() const { return lock.ends_with('L'); }

  std::filesystem::path run_directory() const { return std::filesystem::path(output) / name; }
};

/// Reads a training config: the file (a path, or the name of a shipped config), then the overrides in order.
/// `model` and `preprocess` come back resolved, so that the printed options repeat the run anywhere.
/// Throws: ConfigError with every problem and its place.
CONTRASTIVE_API RunOptions load_run_options(const std::string& file, const std::vector<std::string>& overrides);

/// The options as the YAML text that a run stores. Reading it gives equal options.
CONTRASTIVE_API std::string to_yaml(const RunOptions& options);

/// The keys whose values differ, as "optim.lr: 0.001, now 0.002"; keys that can't change what is learned (where and how
/// often to log, save and evaluate, loader threads) come second.
struct OptionDifferences {
  std::vector<std::string> of_training;
  std::vector<std::string> of_bookkeeping;
};
CONTRASTIVE_API OptionDifferences compare(const RunOptions& before, const RunOptions& now);

}  // namespace contrastive::train
