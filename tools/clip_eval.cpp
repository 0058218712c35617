#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/config_node.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/log.h"
#include "contrastive/core/options.h"
#include "contrastive/distributed/connect.h"
#include "contrastive/distributed/rank_environment.h"
#include "contrastive/eval/checkpoint_source.h"
#include "contrastive/eval/evaluation_result.h"
#include "contrastive/eval/evaluator.h"
#include "contrastive/eval/model_folder.h"
#include "contrastive/eval/preprocess_config.h"
#include "contrastive/eval/suite.h"
#include "contrastive/text/prompts.h"
#include "contrastive/train/trainer.h"

#include "common/count_progress.h"
#include "common/local_ranks.h"
#include "common/program.h"
#include "common/ranks.h"
#include "common/validators.h"

namespace {

using namespace contrastive;
namespace fs = std::filesystem;

struct Arguments {
  std::vector<std::string> checkpoints;
  std::string model;
  std::string weights;
  std::string suite;
  std::string output;
  std::string precision = "fp32";
  std::string on_bad_sample = "fail";
  std::string command;                  ///< as it was typed
  std::vector<std::string> preprocess;  ///< "key=value" each
  std::optional<double> c;
  int64_t nproc = 1;
  double timeout_seconds = 600;
  eval::EvaluationTask task;
  eval::EvaluatorOptions evaluator;
};

/// What the model was stored with, changed by the command line.
image::PreprocessSpec changed_preprocess(const image::PreprocessSpec& stored, const std::vector<std::string>& changes) {
  if (changes.empty()) return stored;
  auto node = eval::to_node(stored);
  for (const auto& change : changes) apply_override(node, change);
  return eval::load_preprocess(node, stored.size);
}

/// "run" of "runs/run", "run_step_00000100" of "runs/run/checkpoints/step_00000100".
std::string label_of(const fs::path& given) {
  auto path = fs::absolute(given).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  const auto name = fs::is_directory(path) ? path.filename().string() : path.stem().string();
  const auto parent = path.parent_path();
  if (parent.filename() != "checkpoints") return name;
  return fmt::format("{}_{}", parent.parent_path().filename().string(), name);
}

/// What is to be evaluated, in the order of the command line.
std::vector<eval::EvaluationSubject> subjects_of(const Arguments& arguments) {
  if (arguments.checkpoints.empty() == arguments.weights.empty()) {
    throw ConfigError("name a model: --checkpoint PATH, or --model NAME with --weights FILE");
  }
  const auto& paths =
      arguments.checkpoints.empty() ? std::vector<std::string>{arguments.weights} : arguments.checkpoints;
  std::vector<eval::EvaluationSubject> subjects;
  for (const auto& path : paths) {
    auto label = label_of(path);
    const bool is_taken =
        std::any_of(subjects.begin(), subjects.end(), [&](const auto& each) { return each.label == label; });
    if (is_taken) label += fmt::format("_{}", subjects.size() + 1);
    subjects.push_back({arguments.model.empty() ? path : arguments.model, path, label, arguments.command});
  }
  return subjects;
}

/// One rank of an evaluation.
class EvaluationRun {
 public:
  explicit EvaluationRun(const Arguments& arguments) : arguments_(arguments) {
    const auto environment = distributed::read_rank_environment();
    device_ = distributed::device_of_rank(environment, train::choose_device("auto"));
    group_ = tools::meet_other_ranks("clip_eval", environment, device_, arguments.timeout_seconds,
                                     /*choose_threads=*/true);
    if (!is_first()) set_log_level(LogLevel::error);
  }

  /// Evaluates one task on every model.
  int run_task() {
    std::vector<eval::SubjectResults> all;
    std::string json;
    for (const auto& subject : subjects_of(arguments_)) {
      auto evaluator = open(subject);
      const auto prepared = evaluator.prepare(arguments_.task);
      const auto key = evaluator.key(*prepared);
      auto results = evaluator.run(*prepared);
      for (auto& result : results) {
        result.key = key;
        show_hints(result);
        json += (json.empty() ? "" : ",\n") + to_json(result, subject);
      }
      all.push_back({subject.label, std::move(results)});
    }
    if (is_first()) report(all, json);
    return tools::kDone;
  }

  int run_suite() {
    const auto suite = eval::load_suite(arguments_.suite);
    const fs::path output = arguments_.output;
    std::vector<eval::SubjectResults> all;
    std::string failures;
    int64_t num_failures = 0;
    for (const auto& subject : subjects_of(arguments_)) {
      auto evaluator = open(subject);
      eval::SuiteHooks hooks;
      hooks.on_result = [&](const auto& result, bool was_kept) {
        fmt::print("{}{}{}\n", subject_prefix(subject), summary(result), was_kept ? "  (from before)" : "");
        show_hints(result);
        std::fflush(stdout);
      };
      hooks.on_failure = [&](const auto& failure) {
        fmt::print(stderr, "clip_eval: {}{} failed: {}\n", subject_prefix(subject), failure.name, failure.message);
      };
      auto outcome = eval::run_suite(suite, evaluator, subject, output / subject.label, hooks, group_);
      num_failures += static_cast<int64_t>(outcome.failures.size());
      for (const auto& each : outcome.failures) {
        failures += fmt::format("  {}{}: {}\n", subject_prefix(subject), each.name, each.message);
      }
      all.push_back({subject.label, std::move(outcome.results)});
    }
    if (!is_first()) return num_failures == 0 ? tools::kDone : tools::kFailed;
    write_file_atomically(output / "results.csv", results_csv(all));
    fmt::print("\n{}\nwritten to {}/\n", results_table(all), output.string());
    if (num_failures == 0) return tools::kDone;
    fmt::print(stderr, "clip_eval: {} of {} evaluations failed; a rerun does only these:\n{}", num_failures,
               suite.tasks.size() * all.size(), failures);
    return tools::kFailed;
  }

 private:
  bool is_first() const { return group_.rank() == 0; }

  std::string subject_prefix(const eval::EvaluationSubject& subject) const {
    return arguments_.checkpoints.size() > 1 ? subject.label + " " : "";
  }

  eval::Evaluator open(const eval::EvaluationSubject& subject) {
    eval::CheckpointRequest request;
    request.path = subject.pretrained;
    request.model = arguments_.model;
    auto loaded = eval::load_model(request);
    loaded.preprocess = changed_preprocess(loaded.preprocess, arguments_.preprocess);
    const auto tokenizer = tokenizer_of(loaded);
    loaded.model->to(device_);
    auto options = arguments_.evaluator;
    options.bf16 = arguments_.precision == "amp_bf16";
    options.skip_bad_samples = arguments_.on_bad_sample == "skip";
    if (!arguments_.suite.empty() && options.cache.empty()) {
      options.cache = (fs::path(arguments_.output) / "cache").string();
    }
    if (is_first())
      options.on_progress = [this](const auto& what, int64_t done, int64_t total) { show(what, done, total); };
    return eval::Evaluator(loaded.model, loaded.preprocess, tokenizer, options, group_);
  }

  /// Probes need none, so that a missing one is no mistake yet.
  std::shared_ptr<const text::Tokenizer> tokenizer_of(const eval::LoadedModel& loaded) const {
    const auto& task = arguments_.task.task;
    if (arguments_.suite.empty() && (task == "linear-probe" || task == "few-shot")) return nullptr;
    return eval::open_tokenizer(loaded.model->config(), loaded.folder);
  }

  void show(const std::string& what, int64_t done, int64_t total) {
    if (!progress_ || what != shown_ || total != last_total_ || done <= last_done_) {
      progress_.emplace(what + " ", 0, total, stderr);
    }
    shown_ = what;
    last_total_ = total;
    last_done_ = done;
    progress_->update(done);
  }

  static void show_hints(const eval::EvaluationResult& result) {
    for (const auto& hint : result.hints) log(LogLevel::warning, fmt::format("{}: {}", result.name, hint));
  }

  /// Writes the results to their file and a summary to stdout; without a file the results.
  void report(const std::vector<eval::SubjectResults>& all, const std::string& json) const {
    const bool is_list = all.size() > 1 || all.front().results.size() > 1;
    const auto text = is_list ? "[\n" + json + "]\n" : json;
    if (arguments_.output.empty()) {
      fmt::print("{}", text);
      return;
    }
    try {
      write_file_atomically(arguments_.output, text);
    } catch (const Error&) {
      fmt::print("{}", text);  // not lost
      throw;
    }
    if (is_list) {
      fmt::print("{}written to {}\n", results_table(all), arguments_.output);
    } else {
      fmt::print("{}; written to {}\n", summary(all.front().results.front()), arguments_.output);
    }
  }

  const Arguments& arguments_;
  torch::Device device_{torch::kCPU};
  distributed::ProcessGroup group_;
  std::optional<tools::CountProgress> progress_;
  std::string shown_;
  int64_t last_done_ = 0;
  int64_t last_total_ = 0;
};

void add_model_options(CLI::App& command, Arguments& arguments) {
  auto* checkpoint = command.add_option(
      "--checkpoint", arguments.checkpoints,
      "a run, one of its checkpoints, an open_clip or transformers folder, OpenAI's file or a LiT .npz; several are "
      "compared");
  command.add_option("--model", arguments.model, "a shipped model's name or JSON file")->excludes(checkpoint);
  command.add_option("--weights", arguments.weights, "a safetensors or torch.save file without a config beside it")
      ->excludes(checkpoint);
  command.add_option("--precision", arguments.precision)
      ->check(CLI::IsMember({"fp32", "amp_bf16"}))
      ->capture_default_str();
  command.add_option("--batch-size", arguments.evaluator.batch_size)->check(tools::positive())->capture_default_str();
  command.add_option("--workers", arguments.evaluator.workers, "decoding threads")
      ->check(tools::positive())
      ->capture_default_str();
  command
      .add_option("--preprocess", arguments.preprocess,
                  "KEY=VALUE in place of what the model's preprocess_cfg says, as resize_mode=squash or "
                  "antialias=false; may be repeated")
      ->allow_extra_args(false);
  command
      .add_option("--on-bad-sample", arguments.on_bad_sample,
                  "fail: stop at the first image that can't be read; skip: leave such images out, and count them")
      ->check(CLI::IsMember({"fail", "skip"}))
      ->capture_default_str();
  command.add_option("--cache", arguments.evaluator.cache,
                     "folder that keeps classifiers and features of probes for other runs");
  command.add_option("--nproc", arguments.nproc, "ranks to start on this machine; the results are those of one")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command.add_option("--timeout-seconds", arguments.timeout_seconds, "how long ranks wait for one that doesn't answer")
      ->check(tools::positive())
      ->capture_default_str();
}

CLI::App* add_task(CLI::App& app, const char* name, const char* description, Arguments& arguments) {
  auto* command = app.add_subcommand(name, description);
  add_model_options(*command, arguments);
  command->add_option("--data", arguments.task.data, "the data set: see docs/evaluation.md; or `synthetic`")
      ->required();
  command->add_option("--split", arguments.task.split)->capture_default_str();
  command->add_option("--name", arguments.task.name, "of the result; without it the data set's and the task's");
  command->add_option("--image-key", arguments.task.image_key, "column of a CSV file with the images' paths");
  command->add_option("--separator", arguments.task.separator, "of a CSV file");
  command->add_option("--output", arguments.output, "result file (JSON); without it the result goes to stdout");
  return command;
}

void add_class_options(CLI::App& command, Arguments& arguments) {
  command.add_option("--class-names", arguments.task.class_names,
                     "file in place of the data set's names, or `imagenet` for CLIP's 1,000");
  command.add_option(
      "--class-ids", arguments.task.class_ids,
      "file with the folder of each class, in the order of the names, or `imagenet` for its WordNet ids");
  command.add_option("--label-key", arguments.task.label_key, "column of a CSV file with the labels");
}

void add_zero_shot(CLI::App& app, Arguments& arguments) {
  auto* command = add_task(app, "zero-shot", "zero-shot classification", arguments);
  auto& task = arguments.task;
  add_class_options(*command, arguments);
  command->add_option("--labels", task.labels, "JSON file with several labels an image, any of which is right (ReaL)");
  command
      ->add_option("--prompts", task.prompts,
                   fmt::format("in place of the data set's templates: {}; a file with a template a line; a .json file "
                               "with prompts for each class (CuPL). Several are compared in one pass, `dataset` being "
                               "the data set's",
                               fmt::join(text::prompt_set_names(), ", ")))
      ->delimiter(',')
      ->allow_extra_args(false);
  command->add_flag("--canonicalize", task.canonicalize,
                    "lower-case class names and templates without punctuation; the first alias of a class only");
  command->add_flag("--merge-duplicates", task.merge_duplicates, "classes of the same name count as one");
  command->add_flag("--per-class", task.per_class, "a row for each class in the result");
  command->add_flag("--confusion", task.confusion, "counts of (label, predicted) in the result");
  command->add_flag("--accept-class-order", task.accept_class_order,
                    "report the score although the class names seem to be in another order than the labels");
}

void add_retrieval(CLI::App& app, Arguments& arguments) {
  auto* command =
      add_task(app, "retrieval", "zero-shot retrieval, images by captions and captions by images", arguments);
  auto& task = arguments.task;
  command->add_option("--images", task.images, "folder that the images of a captions file lie in");
  command->add_option("--captions", task.captions, "captions file (Karpathy's or COCO's JSON, CSV) of --data");
  command->add_option("--captions-per-image", task.captions_per_image, "the first so many; 0: all")
      ->check(tools::non_negative())
      ->capture_default_str();
  command->add_option("--caption-key", task.caption_key, "column of a CSV file with the captions");
}

void add_shot_options(CLI::App& command, Arguments& arguments) {
  auto& task = arguments.task;
  command.add_option("--train", task.train, "the data set whose training split is learned from; without it --data's");
  command.add_option("--train-split", task.train_split)->capture_default_str();
  command
      .add_option("--shots", task.shots, "samples a class; without it linear-probe takes all, few-shot 1, 5, 10, 25")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(tools::positive());
  command.add_option("--seeds", task.seeds, "draws of them")->check(tools::positive())->capture_default_str();
}

void add_probes(CLI::App& app, Arguments& arguments) {
  auto& task = arguments.task;
  auto* probe = add_task(app, "linear-probe", "logistic regression on the image tower's features", arguments);
  add_class_options(*probe, arguments);
  add_shot_options(*probe, arguments);
  probe->add_option("--val-split", task.val_split,
                    "split of the training set that C is chosen on; without it a fifth of the training split");
  probe->add_option("--features", task.features, "before the projection (tower) or behind it (embedding)")
      ->check(CLI::IsMember({"tower", "embedding"}))
      ->capture_default_str();
  auto* c = probe->add_option("--c", arguments.c, "inverse strength of the penalty; without it chosen by the sweep")
                ->check(tools::positive());
  probe->add_option("--sweep", task.sweep, "binary: as in the CLIP paper; full: every one of the 97 values")
      ->check(CLI::IsMember({"binary", "full"}))
      ->capture_default_str()
      ->excludes(c);

  auto* few_shot = add_task(app, "few-shot",
                            "linear regressions on the image tower's features of a few samples a class, as in the LiT "
                            "paper",
                            arguments);
  add_class_options(*few_shot, arguments);
  add_shot_options(*few_shot, arguments);
  few_shot->add_option("--l2", task.l2, "the penalty")->check(tools::positive())->capture_default_str();
}

/// Fills what the parser doesn't.
void complete(Arguments& arguments, const CLI::App& app, int argc, char** argv) {
  for (int i = 0; i < argc; ++i) arguments.command += (i == 0 ? "" : " ") + std::string(argv[i]);
  const auto commands = app.get_subcommands();
  if (commands.empty() == arguments.suite.empty()) {
    throw ConfigError("name what to evaluate: zero-shot, retrieval, linear-probe, few-shot, or --suite FILE (--help)");
  }
  if (!arguments.suite.empty()) {
    if (arguments.output.empty()) throw ConfigError("--suite needs --output FOLDER for the results");
    return;
  }
  const auto folder = fs::path(arguments.output).parent_path();
  if (!folder.empty() && !fs::is_directory(folder)) {
    throw ConfigError(fmt::format("--output: there is no folder {}", folder.string()));
  }
  arguments.task.task = commands.front()->get_name();
  arguments.task.c = arguments.c;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Evaluates models: one task on one data set, or a suite of them.", "clip_eval");
  Arguments arguments;
  app.require_subcommand(0, 1);
  add_zero_shot(app, arguments);
  add_retrieval(app, arguments);
  add_probes(app, arguments);
  app.add_option("--suite", arguments.suite, "a YAML file that lists evaluations (docs/evaluation.md)");
  app.add_option("--output", arguments.output, "folder for a suite's results; what is there already is not done again");
  add_model_options(app, arguments);
  return contrastive::tools::run_program(app, argc, argv, [&] {
    complete(arguments, app, argc, argv);
    const bool is_rank = distributed::read_rank_environment().launcher != "none";
    if (arguments.nproc > 1 && !is_rank) return tools::run_local_ranks("clip_eval", arguments.nproc, argv);
    EvaluationRun run(arguments);
    return arguments.suite.empty() ? run.run_task() : run.run_suite();
  });
}
