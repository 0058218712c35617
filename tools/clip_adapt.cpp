#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "contrastive/adapt/adapted_classifier.h"
#include "contrastive/core/error.h"
#include "contrastive/distributed/rank_environment.h"
#include "contrastive/eval/encoder.h"

#include "adapt_run.h"
#include "adapt_support.h"
#include "common/local_ranks.h"
#include "common/program.h"

namespace {

using namespace contrastive;
namespace fs = std::filesystem;

struct PredictArguments {
  std::string checkpoint;
  std::string model;
  std::string adapted;
  std::vector<std::string> images;
  int64_t top = 5;
};

/// Each image by itself, as a service would.
int predict(const PredictArguments& arguments) {
  const auto classifier = adapt::AdaptedClassifier::open(arguments.adapted);
  if (classifier.adapter().needs_tokens()) {
    throw ConfigError(fmt::format("[{}] {} needs spatial features, which predict doesn't make", arguments.adapted,
                                  classifier.adapter().name()));
  }
  eval::CheckpointRequest request;
  request.path = arguments.checkpoint;
  request.model = arguments.model;
  const auto encoder = eval::Encoder::open(request);
  classifier.require_model(encoder.fingerprint());
  for (const auto& image : arguments.images) {
    const std::vector<fs::path> file{image};
    const auto best = classifier.classify({encoder.encode_images(file), {}}, arguments.top).front();
    fmt::print("{}\n", image);
    for (const auto& each : best) fmt::print("  {:6.2f} %  {}\n", 100 * each.probability, each.name);
  }
  return tools::kDone;
}

void add_predict(CLI::App& app, PredictArguments& arguments) {
  auto* command = app.add_subcommand("predict", "classify images with a saved classifier, one at a time");
  command->add_option("images", arguments.images, "image files")->required();
  command->add_option("--adapted", arguments.adapted, "what `run --save` wrote")->required();
  command->add_option("--checkpoint", arguments.checkpoint, "the model that it was fitted on")->required();
  command->add_option("--model", arguments.model, "a shipped model's name or JSON file, for weights without a config");
  command->add_option("--top", arguments.top, "classes shown")->check(CLI::PositiveNumber)->capture_default_str();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Adapts models to a task without training them: support sets of class names or a few images, and classifiers on "
      "frozen features.",
      "clip_adapt");
  app.require_subcommand(1);
  tools::SupportArguments support;
  auto* support_command = tools::add_support_commands(app, support);
  tools::RunArguments run;
  auto* run_command = app.add_subcommand("run", "fit adapters to support sets and test them");
  tools::add_run_options(*run_command, run);
  PredictArguments prediction;
  add_predict(app, prediction);
  return tools::run_program(app, argc, argv, [&] {
    for (int i = 0; i < argc; ++i) run.command += (i == 0 ? "" : " ") + std::string(argv[i]);
    const auto ranks = std::max(run.model.nproc, support.model.nproc);
    const bool is_rank = distributed::read_rank_environment().launcher != "none";
    if (ranks > 1 && !is_rank) return tools::run_local_ranks("clip_adapt", ranks, argv);
    if (support_command->parsed()) return tools::run_support_command(*support_command, support);
    if (app.got_subcommand("predict")) return predict(prediction);
    return tools::run_adapters(run);
  });
}
