#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include <ATen/Context.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/config_node.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/eval/few_shot.h"
#include "contrastive/eval/model_folder.h"
#include "contrastive/eval/preprocess_config.h"
#include "contrastive/eval/zero_shot.h"
#include "contrastive/text/clip_tokenizer.h"
#include "contrastive/text/prompts.h"
#include "contrastive/train/trainer.h"

#include "common/program.h"

namespace {

using namespace contrastive;

struct Arguments {
  std::string checkpoint;
  std::string model;
  std::string weights;
  std::string data;
  std::string train;
  std::string output;
  std::string precision = "fp32";
  std::string prompts;
  std::vector<std::string> preprocess;  ///< "key=value" each
  int64_t batch_size = 256;
  int64_t workers = 2;
  eval::ZeroShotOptions zero_shot;
  eval::FewShotOptions few_shot;

  bool is_bf16() const { return precision == "amp_bf16"; }
};

/// What the model was stored with, changed by the command line.
image::PreprocessSpec changed_preprocess(const image::PreprocessSpec& stored, const std::vector<std::string>& changes) {
  if (changes.empty()) return stored;
  auto node = eval::to_node(stored);
  for (const auto& change : changes) apply_override(node, change);
  return eval::load_preprocess(node, stored.size);
}

eval::LoadedModel load_model(const Arguments& arguments) {
  if (arguments.checkpoint.empty() == arguments.weights.empty()) {
    throw ConfigError("name a model: --checkpoint PATH, or --model NAME with --weights FILE");
  }
  eval::CheckpointRequest request;
  request.path = arguments.checkpoint.empty() ? arguments.weights : arguments.checkpoint;
  request.model = arguments.model;
  auto loaded = eval::load_model(request);
  loaded.preprocess = changed_preprocess(loaded.preprocess, arguments.preprocess);
  if (at::hasCUDA()) loaded.model->to(torch::kCUDA);
  return loaded;
}

/// The keys of CLIP_benchmark's result files.
nlohmann::ordered_json result_json(const Arguments& arguments, const std::string& dataset, const std::string& task,
                                   const nlohmann::ordered_json& metrics) {
  return {{"dataset", dataset},
          {"model", arguments.model.empty() ? arguments.checkpoint : arguments.model},
          {"pretrained", arguments.weights.empty() ? arguments.checkpoint : arguments.weights},
          {"task", task},
          {"metrics", metrics},
          {"language", "en"}};
}

/// Writes the result to its file, and then the summary to stdout; without a file the result.
int report(const Arguments& arguments, const nlohmann::ordered_json& result, const std::string& summary) {
  const auto text = result.dump(2) + "\n";
  if (arguments.output.empty()) {
    fmt::print("{}", text);
  } else {
    write_file_atomically(arguments.output, text);
    fmt::print("{}; written to {}\n", summary, arguments.output);
  }
  return tools::kDone;
}

/// Puts the templates of --prompts in place, which names a set or a file.
void choose_prompts(const Arguments& arguments, data::ClassificationSet& set, eval::ZeroShotOptions& options) {
  if (arguments.prompts.empty()) return;
  const auto& names = text::prompt_set_names();
  if (std::find(names.begin(), names.end(), arguments.prompts) != names.end()) {
    options.prompts = arguments.prompts;
  } else if (std::filesystem::exists(arguments.prompts)) {
    set.templates = text::read_templates(arguments.prompts);
  } else {
    text::prompt_set(arguments.prompts);  // says which sets there are
  }
}

int zero_shot(const Arguments& arguments) {
  auto set = train::open_classification_set(arguments.data, {});
  auto options = arguments.zero_shot;
  options.batch_size = arguments.batch_size;
  options.workers = arguments.workers;
  options.bf16 = arguments.is_bf16();
  choose_prompts(arguments, set, options);
  auto loaded = load_model(arguments);
  const auto tokenizer = eval::open_tokenizer(loaded.model->config(), loaded.folder);
  const auto metrics = eval::evaluate_zero_shot(loaded.model, loaded.preprocess, *tokenizer, set, options);
  auto result = result_json(arguments, set.name, "zeroshot_classification",
                            {{"acc1", metrics.top1_accuracy},
                             {"acc5", metrics.top5_accuracy},
                             {"mean_per_class_recall", metrics.mean_per_class_recall}});
  result["num_samples"] = metrics.num_samples;
  result["precision"] = arguments.precision;
  if (!arguments.prompts.empty()) result["prompts"] = arguments.prompts;
  if (options.canonicalize) result["canonicalize"] = true;
  return report(arguments, result,
                fmt::format("{}: top-1 {:.2f} %, top-5 {:.2f} %, mean per-class recall {:.2f} % of {} images", set.name,
                            metrics.top1_accuracy * 100, metrics.top5_accuracy * 100,
                            metrics.mean_per_class_recall * 100, metrics.num_samples));
}

/// A split of a folder in CLIP_benchmark's layout, or synthetic samples: other ones for each split.
data::ClassificationSet open_split(const std::string& name, const std::string& split) {
  if (name != "synthetic") return data::open_classification_folder(name, split);
  train::SyntheticDataOptions options;
  options.seed += split == "train" ? 1 : 0;
  return train::open_classification_set(name, options);
}

int few_shot(const Arguments& arguments) {
  auto options = arguments.few_shot;
  options.batch_size = arguments.batch_size;
  options.workers = arguments.workers;
  options.bf16 = arguments.is_bf16();
  const auto train = open_split(arguments.train.empty() ? arguments.data : arguments.train, "train");
  const auto test = open_split(arguments.data, "test");
  auto loaded = load_model(arguments);
  const auto results = eval::evaluate_few_shot(loaded.model, loaded.preprocess, train, test, options);
  nlohmann::ordered_json metrics;
  std::string summary = test.name + ":";
  for (const auto& each : results) {
    const auto name = fmt::format("{}shot", each.shots);
    metrics[name] = {{"acc1", each.mean()}, {"acc1_by_seed", each.accuracies}};
    summary += fmt::format(" {} {:.2f} %,", name, each.mean() * 100);
  }
  auto result = result_json(arguments, test.name, "fewshot_linear_regression", metrics);
  result["num_samples"] = test.source->size();
  result["l2_reg"] = options.l2_reg;
  result["precision"] = arguments.precision;
  return report(arguments, result, fmt::format("{} means of {} draws", summary, options.seeds));
}

void add_common_options(CLI::App& command, Arguments& arguments) {
  auto* checkpoint =
      command.add_option("--checkpoint", arguments.checkpoint,
                         "a run, one of its checkpoints, an open_clip or transformers folder, or OpenAI's file");
  command.add_option("--model", arguments.model, "a shipped model's name or JSON file")->excludes(checkpoint);
  command.add_option("--weights", arguments.weights, "a safetensors or torch.save file without a config beside it")
      ->excludes(checkpoint);
  command.add_option("--data", arguments.data, "the data set's folder, or `synthetic`")->required();
  command.add_option("--output", arguments.output, "result file (JSON); without it the result goes to stdout");
  command.add_option("--precision", arguments.precision)
      ->check(CLI::IsMember({"fp32", "amp_bf16"}))
      ->capture_default_str();
  command.add_option("--batch-size", arguments.batch_size)->check(CLI::PositiveNumber)->capture_default_str();
  command.add_option("--workers", arguments.workers, "decoding threads")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      .add_option("--preprocess", arguments.preprocess,
                  "KEY=VALUE in place of what the model's preprocess_cfg says, as resize_mode=squash or "
                  "antialias=false; may be repeated")
      ->allow_extra_args(false);
}

CLI::App* add_zero_shot(CLI::App& app, Arguments& arguments) {
  auto* command = app.add_subcommand("zero-shot", "zero-shot classification on a folder in CLIP_benchmark's layout");
  add_common_options(*command, arguments);
  command->add_option("--prompts", arguments.prompts,
                      fmt::format("templates in place of the data set's: {}, or a file with one a line",
                                  fmt::join(text::prompt_set_names(), ", ")));
  command->add_flag("--canonicalize", arguments.zero_shot.canonicalize,
                    "lower-case class names and templates without punctuation; the first alias of a class only");
  return command;
}

CLI::App* add_few_shot(CLI::App& app, Arguments& arguments) {
  auto* command = app.add_subcommand(
      "few-shot", "linear regressions on the image tower's features of a few samples a class, as in the LiT paper");
  add_common_options(*command, arguments);
  command->add_option("--train", arguments.train, "the folder whose train split is learned from; without it --data's");
  command->add_option("--shots", arguments.few_shot.shots, "samples a class")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--seeds", arguments.few_shot.seeds, "draws of them")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--l2", arguments.few_shot.l2_reg, "the penalty")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  return command;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Evaluates a model.", "clip_eval");
  Arguments arguments;
  app.require_subcommand(1);
  const auto* few_shot_command = add_few_shot(app, arguments);
  add_zero_shot(app, arguments);
  return contrastive::tools::run_program(
      app, argc, argv, [&] { return few_shot_command->parsed() ? few_shot(arguments) : zero_shot(arguments); });
}
