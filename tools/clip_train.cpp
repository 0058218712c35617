#include <filesystem>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <stdlib.h>

#include "contrastive/core/log.h"
#include "contrastive/core/version.h"
#include "contrastive/train/run_options.h"
#include "contrastive/train/trainer.h"

#include "common/program.h"
#include "common/progress.h"

namespace {

using namespace contrastive;
namespace fs = std::filesystem;

struct Arguments {
  std::string config;
  std::vector<std::string> overrides;
  std::string resume = "none";
  bool dry_run = false;
  bool print_config = false;
};

void print_summary(const train::RunOptions& options, const train::RunSummary& summary) {
  fmt::print("{}\n", version_details());
  fmt::print("run {}: {} parameters, {} training samples, {} steps of {}, {} on {}\n", options.run_directory().string(),
             summary.parameters, summary.train_samples, summary.total_steps, options.train.global_batch,
             options.precision, summary.device);
  fmt::print("a model that knows nothing has loss ln({}) = {:.3f}\n", options.train.global_batch, summary.chance_loss);
  if (summary.first_step > 0) fmt::print("resumed at step {}\n", summary.first_step);
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

int train_run(const train::RunOptions& options, const std::string& resume) {
  tools::install_stop_signals();
  std::optional<tools::Progress> progress;
  train::TrainerHooks hooks;
  hooks.on_step = [&](const train::StepMetrics& m) { progress->step(m); };
  hooks.on_evaluation = [&](const train::EvaluationMetrics& m) { progress->message(evaluation_text(m)); };
  hooks.on_checkpoint = [&](const std::string& folder) { progress->message("saved " + folder); };
  hooks.stop_requested = tools::stop_requested;
  train::Trainer trainer(options, {.from = resume}, hooks);
  const auto summary = trainer.summary();
  print_summary(options, summary);
  progress.emplace(summary.first_step, summary.total_steps);
  const auto outcome = trainer.run();
  progress->finish();
  if (outcome == train::RunOutcome::stopped) fmt::print("stopped on request; --resume auto goes on from here\n");
  return tools::kDone;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Trains a CLIP model from a configuration file.", "clip_train");
  Arguments arguments;
  app.add_option("--config", arguments.config, "a YAML file, or the name of a shipped one (quickstart.yaml)")
      ->required();
  app.add_option("--resume", arguments.resume,
                 "auto: from the run's latest checkpoint, if any; none: from the start; PATH: from that checkpoint")
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
    return arguments.dry_run ? dry_run(options) : train_run(options, arguments.resume);
  });
}
