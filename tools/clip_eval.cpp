#include <filesystem>
#include <string>

#include <ATen/Context.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/eval/model_folder.h"
#include "contrastive/eval/zero_shot.h"
#include "contrastive/text/clip_tokenizer.h"
#include "contrastive/train/trainer.h"

#include "common/program.h"

namespace {

using namespace contrastive;
struct Arguments {
  std::string checkpoint;
  std::string model;
  std::string weights;
  std::string data;
  std::string output;
  std::string precision = "fp32";
  eval::ZeroShotOptions zero_shot;
};

eval::LoadedModel load_model(const Arguments& arguments) {
  if (arguments.checkpoint.empty() == arguments.weights.empty()) {
    throw ConfigError("name a model: --checkpoint PATH, or --model NAME with --weights FILE");
  }
  eval::CheckpointRequest request;
  request.path = arguments.checkpoint.empty() ? arguments.weights : arguments.checkpoint;
  request.model = arguments.model;
  return eval::load_model(request);
}

/// The keys of CLIP_benchmark's result files.
nlohmann::ordered_json result_json(const Arguments& arguments, const std::string& dataset,
                                   const eval::ZeroShotMetrics& metrics) {
  return {{"dataset", dataset},
          {"model", arguments.model.empty() ? arguments.checkpoint : arguments.model},
          {"pretrained", arguments.weights.empty() ? arguments.checkpoint : arguments.weights},
          {"task", "zeroshot_classification"},
          {"metrics",
           {{"acc1", metrics.top1_accuracy},
            {"acc5", metrics.top5_accuracy},
            {"mean_per_class_recall", metrics.mean_per_class_recall}}},
          {"language", "en"},
          {"num_samples", metrics.num_samples},
          {"precision", arguments.precision}};
}

int zero_shot(const Arguments& arguments) {
  auto loaded = load_model(arguments);
  if (at::hasCUDA()) loaded.model->to(torch::kCUDA);
  const auto tokenizer = eval::open_tokenizer(loaded.model->config(), loaded.folder);
  const auto set = train::open_classification_set(arguments.data, {});
  auto options = arguments.zero_shot;
  options.bf16 = arguments.precision == "amp_bf16";
  const auto metrics = eval::evaluate_zero_shot(loaded.model, loaded.preprocess, *tokenizer, set, options);
  const auto text = result_json(arguments, set.name, metrics).dump(2) + "\n";
  if (arguments.output.empty()) {
    fmt::print("{}", text);
  } else {
    write_file_atomically(arguments.output, text);
    fmt::print("{}: top-1 {:.2f} %, top-5 {:.2f} %, mean per-class recall {:.2f} % of {} images; written to {}\n",
               set.name, metrics.top1_accuracy * 100, metrics.top5_accuracy * 100, metrics.mean_per_class_recall * 100,
               metrics.num_samples, arguments.output);
  }
  return tools::kDone;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Evaluates a model.", "clip_eval");
  Arguments arguments;
  app.require_subcommand(1);
  auto* command = app.add_subcommand("zero-shot", "zero-shot classification on a folder in CLIP_benchmark's layout");
  auto* checkpoint =
      command->add_option("--checkpoint", arguments.checkpoint,
                          "a run, one of its checkpoints, an open_clip or transformers folder, or OpenAI's file");
  command->add_option("--model", arguments.model, "a shipped model's name or JSON file")->excludes(checkpoint);
  command->add_option("--weights", arguments.weights, "a safetensors or torch.save file without a config beside it")
      ->excludes(checkpoint);
  command->add_option("--data", arguments.data, "the data set's folder, or `synthetic`")->required();
  command->add_option("--output", arguments.output, "result file (JSON); without it the result goes to stdout");
  command->add_option("--precision", arguments.precision)
      ->check(CLI::IsMember({"fp32", "amp_bf16"}))
      ->capture_default_str();
  command->add_option("--batch-size", arguments.zero_shot.batch_size)
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--workers", arguments.zero_shot.workers, "decoding threads")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  return contrastive::tools::run_program(app, argc, argv, [&] { return zero_shot(arguments); });
}
