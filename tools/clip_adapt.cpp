#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "contrastive/adapt/adaptation_record.h"
#include "contrastive/adapt/adapted_classifier.h"
#include "contrastive/adapt/report.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/distributed/rank_environment.h"
#include "contrastive/eval/encoder.h"

#include "adapt_run.h"
#include "adapt_support.h"
#include "common/local_ranks.h"
#include "common/program.h"
#include "common/validators.h"

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

struct ReportArguments {
  std::vector<std::string> results;
  std::string output;
};

/// Each image by itself, as a service would.
int predict(const PredictArguments& arguments) {
  const auto classifier = adapt::AdaptedClassifier::open(arguments.adapted);
  eval::CheckpointRequest request;
  request.path = arguments.checkpoint;
  request.model = arguments.model;
  const auto encoder = eval::Encoder::open(request);
  classifier.require_model(encoder.fingerprint());
  for (const auto& image : arguments.images) {
    const std::vector<fs::path> file{image};
    adapt::QueryFeatures query;
    if (classifier.adapter().needs_tokens()) {
      const auto places = encoder.encode_places(file);
      query = {places.select(1, 0), places.slice(1, 1)};
    } else {
      query.features = encoder.encode_images(file);
    }
    const auto best = classifier.classify(query, arguments.top).front();
    fmt::print("{}\n", image);
    for (const auto& each : best) fmt::print("  {:6.2f} %  {}\n", 100 * each.probability, each.name);
  }
  return tools::kDone;
}

/// A file name out of a data set's.
std::string file_name(const std::string& text) {
  std::string name;
  for (const char c : fs::path(text).filename().string()) {
    const bool is_plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-';
    name += is_plain ? c : '_';
  }
  return name;
}

bool has_shots(const adapt::ReportTable& table) {
  return std::any_of(table.rows.begin(), table.rows.end(), [](const auto& row) {
    return std::any_of(row.cells.begin(), row.cells.end(), [](const auto& cell) { return cell.shots > 0; });
  });
}

int report(const ReportArguments& arguments) {
  std::vector<adapt::AdaptationRecord> records;
  for (const auto& file : arguments.results) {
    const auto more = adapt::read_records(file);
    records.insert(records.end(), more.begin(), more.end());
  }
  const auto tables = adapt::make_report(records);
  const auto markdown = adapt::report_markdown(tables);
  const fs::path folder = arguments.output;
  fs::create_directories(folder);
  write_file_atomically(folder / "table.md", markdown);
  write_file_atomically(folder / "table.csv", adapt::report_csv(tables));
  for (size_t i = 0; i < tables.size(); ++i) {
    if (!has_shots(tables[i])) continue;
    const auto number = tables.size() > 1 ? fmt::format("_{}", i + 1) : "";
    write_file_atomically(folder / fmt::format("{}{}.svg", file_name(tables[i].dataset), number),
                          adapt::report_svg(tables[i]));
  }
  fmt::print("{}\nwritten to {}/\n", markdown, folder.string());
  return tools::kDone;
}

void add_predict(CLI::App& app, PredictArguments& arguments) {
  auto* command = app.add_subcommand("predict", "classify images with a saved classifier, one at a time");
  command->add_option("images", arguments.images, "image files")->required();
  command->add_option("--adapted", arguments.adapted, "what `run --save` wrote")->required();
  command->add_option("--checkpoint", arguments.checkpoint, "the model that it was fitted on")->required();
  command->add_option("--model", arguments.model, "a shipped model's name or JSON file, for weights without a config");
  command->add_option("--top", arguments.top, "classes shown")->check(tools::positive())->capture_default_str();
}

void add_report(CLI::App& app, ReportArguments& arguments) {
  auto* command = app.add_subcommand("report", "tables and plots of results files");
  command->add_option("results", arguments.results, "what `run --output` wrote")->required();
  command->add_option("--output", arguments.output, "folder for table.md, table.csv and a plot (SVG) a data set")
      ->required();
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
  ReportArguments reported;
  add_report(app, reported);
  return tools::run_program(app, argc, argv, [&] {
    for (int i = 0; i < argc; ++i) run.command += (i == 0 ? "" : " ") + std::string(argv[i]);
    const auto ranks = std::max(run.model.nproc, support.model.nproc);
    const bool is_rank = distributed::read_rank_environment().launcher != "none";
    if (ranks > 1 && !is_rank) return tools::run_local_ranks("clip_adapt", ranks, argv);
    if (support_command->parsed()) return tools::run_support_command(*support_command, support);
    if (app.got_subcommand("predict")) return predict(prediction);
    if (app.got_subcommand("report")) return report(reported);
    return tools::run_adapters(run);
  });
}
