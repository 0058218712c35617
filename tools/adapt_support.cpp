#include "adapt_support.h"

#include <filesystem>

#include <fmt/format.h>

#include "contrastive/adapt/support_builders.h"
#include "contrastive/adapt/support_set.h"
#include "contrastive/core/error.h"

#include "common/program.h"

namespace contrastive::tools {
namespace {

namespace fs = std::filesystem;

void require_output(const std::string& output) {
  if (fs::path(output).extension() != ".safetensors") {
    throw ConfigError(fmt::format("--output {}: must end in .safetensors", output));
  }
  const auto folder = fs::path(output).parent_path();
  if (!folder.empty() && !fs::is_directory(folder)) {
    throw ConfigError(fmt::format("--output: there is no folder {}", folder.string()));
  }
}

int write(const adapt::SupportSet& set, const std::string& output) {
  adapt::write_support_set(output, set);
  fmt::print("{} images of {} classes in {}\n", set.size(), set.num_classes(), output);
  return kDone;
}

int from_split(const SupportArguments& arguments) {
  require_output(arguments.output);
  AdaptModel model(arguments.model);
  adapt::FromSplitOptions options;
  options.shots = arguments.shots;
  options.seed = arguments.seed;
  options.views = arguments.views;
  options.pass = model.image_pass("images");
  auto set =
      adapt::support_from_split(model.model(), model.preprocess(), open_set(arguments.set), options, model.group());
  set.model_sha256 = model.fingerprint();
  set.preprocess = model.preprocess_words();
  set.preprocess_sha256 = model.preprocess_sha256();
  return model.is_first() ? write(set, arguments.output) : kDone;
}

int append(const SupportArguments& arguments) {
  require_output(arguments.output);
  auto all = adapt::read_support_set(arguments.files.front());
  for (size_t i = 1; i < arguments.files.size(); ++i) {
    all = adapt::append(all, adapt::read_support_set(arguments.files[i]));
  }
  return write(all, arguments.output);
}

int cap(const SupportArguments& arguments) {
  require_output(arguments.output);
  return write(adapt::cap_per_class(adapt::read_support_set(arguments.files.front()), arguments.max_per_class),
               arguments.output);
}

int show(const SupportArguments& arguments) {
  for (const auto& file : arguments.files) {
    const auto set = adapt::read_support_set(file);
    fmt::print("{}: {} images of {} classes, {} features, sha256 {}\n", file, set.size(), set.num_classes(),
               set.features.keys.size(1), set.fingerprint());
    fmt::print("  model {}\n  preprocessing {}\n", set.model_sha256, set.preprocess);
    for (const auto& [name, value] : set.made_by) fmt::print("  {}: {}\n", name, value);
    const auto counts = set.features.counts();
    for (int64_t c = 0; c < set.num_classes(); ++c) {
      fmt::print("  {:6} {}\n", counts[c].item<int64_t>(), set.class_names[static_cast<size_t>(c)]);
    }
  }
  return kDone;
}

void add_output(CLI::App& command, SupportArguments& arguments) {
  command.add_option("--output", arguments.output, "the support set: a .safetensors file; a .json goes beside it")
      ->required();
}

}  // namespace

CLI::App* add_support_commands(CLI::App& app, SupportArguments& arguments) {
  auto* support = app.add_subcommand("support", "make and change support sets");
  support->require_subcommand(1);

  auto* split = support->add_subcommand("from-split", "a few images of each class of a labelled split");
  add_model_options(*split, arguments.model);
  split->add_option("--data", arguments.set.data, "the data set: see docs/evaluation.md")->required();
  split->add_option("--split", arguments.set.split)->capture_default_str();
  split->add_option("--class-names", arguments.set.class_names, "file in place of the data set's names, or `imagenet`");
  split->add_option("--class-ids", arguments.set.class_ids, "file with the id of each class, or `imagenet`");
  split->add_option("--shots", arguments.shots, "images a class")->check(CLI::PositiveNumber)->capture_default_str();
  split->add_option("--seed", arguments.seed)->check(CLI::NonNegativeNumber)->capture_default_str();
  split->add_option("--views", arguments.views, "random crops of each image; 1: the image as in evaluation")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_output(*split, arguments);

  auto* joined =
      support->add_subcommand("append", "join support sets of one model: rows of known classes, new classes");
  joined->add_option("files", arguments.files, "support sets")->required()->expected(2, -1);
  add_output(*joined, arguments);

  auto* capped = support->add_subcommand("cap", "the first images of each class");
  capped->add_option("file", arguments.files, "support set")->required()->expected(1);
  capped->add_option("--per-class", arguments.max_per_class)->required()->check(CLI::PositiveNumber);
  add_output(*capped, arguments);

  auto* shown = support->add_subcommand("show", "what is in support sets");
  shown->add_option("files", arguments.files, "support sets")->required();
  return support;
}

int run_support_command(const CLI::App& support, const SupportArguments& arguments) {
  const auto name = support.get_subcommands().front()->get_name();
  if (name == "from-split") return from_split(arguments);
  if (name == "append") return append(arguments);
  return name == "cap" ? cap(arguments) : show(arguments);
}

}  // namespace contrastive::tools
