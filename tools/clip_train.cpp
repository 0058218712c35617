#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <stdlib.h>

#include "contrastive/core/error.h"
#include "contrastive/core/version.h"
#include "contrastive/distributed/connect.h"
#include "contrastive/train/run_options.h"
#include "contrastive/train/trainer.h"
#include "contrastive/train/training_data.h"

#include "common/local_ranks.h"
#include "common/program.h"
#include "common/progress.h"
#include "common/ranks.h"

namespace {

using namespace contrastive;
namespace fs = std::filesystem;

struct Arguments {
  std::string config;
  std::vector<std::string> overrides;
  std::string resume = "none";
  int64_t nproc = 1;
  bool dry_run = false;
  bool print_config = false;
};

void print_summary(const train::RunOptions& options, const train::RunSummary& summary, int64_t ranks = 1) {
  fmt::print("{}\n", version_details());
  fmt::print("run {}: {} parameters, {} training samples, {} steps of {}, {} on {}\n", options.run_directory().string(),
             summary.parameters, summary.train_samples, summary.total_steps, options.train.global_batch,
             options.precision,
             ranks == 1 ? summary.device : fmt::format("{} ranks, first on {}", ranks, summary.device));
  fmt::print("a model that knows nothing has loss ln({}) = {:.3f}\n", options.train.global_batch, summary.chance_loss);
  fmt::print("{}", summary.plan);
  if (summary.first_step > 0) fmt::print("resumed at step {}\n", summary.first_step);
  std::fflush(stdout);
}

std::string evaluation_text(const train::EvaluationMetrics& m) {
  return fmt::format(
      "step {}: zero-shot {}: top-1 {:.2f} %, top-5 {:.2f} %, mean per-class recall {:.2f} % of {} images "
      "({:.1f} s)",
      m.step, m.dataset, m.zero_shot.top1_accuracy * 100, m.zero_shot.top5_accuracy * 100,
      m.zero_shot.mean_per_class_recall * 100, m.zero_shot.num_samples, m.seconds);
}

/// Builds everything in a folder that is thrown away, so that a mistake shows now and the run's folder stays untouched.
int dry_run(train::RunOptions options) {
  std::string folder = (fs::temp_directory_path() / "clip_train-XXXXXX").string();
  if (::mkdtemp(folder.data()) == nullptr) throw std::runtime_error("no temporary folder can be made");
  struct Remove {
    fs::path path;
    ~Remove() { fs::remove_all(path); }
  } const remove{folder};
  const auto real = options;
  options.output = folder;
  print_summary(real, train::Trainer(options, {.from = "none"}, {}).summary());
  fmt::print("dry run: the configuration is complete and the data can be opened\n");
  return tools::kDone;
}

/// Shows what happens on the first rank.
void show_progress(train::TrainerHooks& hooks, std::optional<tools::Progress>& progress) {
  hooks.on_step = [&](const train::StepMetrics& m) { progress->step(m); };
  hooks.on_evaluation = [&](const train::EvaluationMetrics& m) { progress->message(evaluation_text(m)); };
  hooks.on_suite_result = [&](const train::SuiteMetrics& m) {
    progress->message(fmt::format("step {}: {} ({:.1f} s)", m.step, summary(m.result), m.result.seconds));
  };
  hooks.on_checkpoint = [&](const std::string& folder) { progress->message("saved " + folder); };
}

bool resumes(const train::RunOptions& options, const std::string& resume) {
  return resume == "auto" ? fs::exists(options.run_directory() / "checkpoints" / "latest") : resume != "none";
}

int train_run(const train::RunOptions& options, const std::string& resume) {
  tools::install_stop_signals();
  const auto environment = distributed::read_rank_environment();
  const auto device = distributed::device_of_rank(environment, train::choose_device(options.device));
  const auto group = tools::meet_other_ranks("clip_train", environment, device, options.distributed.timeout_seconds,
                                             /*choose_threads=*/options.threads == 0);
  const bool is_first = group.rank() == 0;
  std::optional<tools::Progress> progress;
  train::TrainerHooks hooks;
  hooks.stop_requested = tools::stop_requested;
  if (is_first) show_progress(hooks, progress);
  train::Trainer trainer(options, {.from = resume}, hooks, group, device);
  const auto summary = trainer.summary();
  if (is_first) print_summary(options, summary, group.size());
  progress.emplace(summary.first_step, summary.total_steps);
  const auto outcome = trainer.run();
  progress->finish();
  if (is_first && outcome == train::RunOutcome::stopped) {
    fmt::print("stopped on request; --resume auto goes on from here\n");
  }
  return tools::kDone;
}

}  // namespace

int main(int argc, char** argv) {
  contrastive::tools::keep_freed_memory();
  CLI::App app("Trains a CLIP model from a configuration file.", "clip_train");
  Arguments arguments;
  app.add_option("--config", arguments.config, "a YAML file, or the name of a shipped one (quickstart.yaml)")
      ->required();
  app.add_option("--resume", arguments.resume,
                 "auto: from the run's latest checkpoint, if any; none: from the start; PATH: from that checkpoint")
      ->capture_default_str();
  app.add_option("--nproc", arguments.nproc,
                 "ranks to start on this machine; under torchrun, srun or mpirun these decide instead")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_flag("--dry-run", arguments.dry_run, "check the configuration, open the data, build the model, then stop");
  app.add_flag("--print-config", arguments.print_config, "print the resolved configuration, then stop");
  app.add_option("overrides", arguments.overrides, "key=value: settings that replace the file's, e.g. optim.lr=1e-3");
  return contrastive::tools::run_program(app, argc, argv, [&] {
    const auto options = train::load_run_options(arguments.config, arguments.overrides);
    if (arguments.print_config) {
      fmt::print("{}", train::to_yaml(options));
      return tools::kDone;
    }
    const bool is_rank = distributed::read_rank_environment().launcher != "none";
    if (!is_rank) train::check_batch_split(options, arguments.nproc);
    train::require_inputs(options, resumes(options, arguments.resume));
    if (arguments.dry_run) return dry_run(options);
    if (arguments.nproc > 1 && !is_rank) return tools::run_local_ranks("clip_train", arguments.nproc, argv);
    return train_run(options, arguments.resume);
  });
}
