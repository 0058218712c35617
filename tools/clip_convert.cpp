// clip_convert: checkpoints between the formats of open_clip, OpenAI and transformers.
#include <filesystem>
#include <functional>
#include <regex>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"
#include "contrastive/eval/checkpoint_source.h"
#include "contrastive/eval/checkpoint_writer.h"
#include "contrastive/models/model_config.h"

#include "common/program.h"
#include "common/validators.h"

namespace {

using namespace contrastive;
namespace fs = std::filesystem;

struct Arguments {
  std::string input;
  std::string output;
  std::string format = "open_clip";
  std::string model;
  int64_t image_size = 0;
  int64_t context_length = 0;
  std::string position_resize = "bicubic";
  std::string allow_missing;
  bool force = false;
};

eval::CheckpointFormat format_of(const std::string& name) {
  if (name == "openai") return eval::CheckpointFormat::openai;
  return name == "hf" ? eval::CheckpointFormat::hf : eval::CheckpointFormat::open_clip;
}

std::function<bool(const std::string&)> matcher(const std::string& pattern) {
  if (pattern.empty()) return {};
  try {
    return [regex = std::regex(pattern)](const std::string& name) { return std::regex_match(name, regex); };
  } catch (const std::regex_error& error) {
    throw ConfigError(fmt::format("--allow-missing '{}' is not a regular expression: {}", pattern, error.what()));
  }
}

eval::CheckpointRequest request_of(const Arguments& arguments) {
  eval::CheckpointRequest request;
  request.path = arguments.input;
  request.model = arguments.model;
  if (arguments.image_size > 0) request.image_size = arguments.image_size;
  if (arguments.context_length > 0) request.context_length = arguments.context_length;
  request.position_resize =
      arguments.position_resize == "bilinear" ? models::PositionResize::bilinear : models::PositionResize::bicubic;
  return request;
}

void refuse_to_overwrite(const Arguments& arguments) {
  const fs::path output = arguments.output;
  std::error_code error;
  const bool is_input = fs::equivalent(arguments.input, output, error);
  const bool is_filled = fs::is_directory(output) ? !fs::is_empty(output) : fs::exists(output);
  if (is_input) throw ConfigError(fmt::format("[{}] is the input as well", arguments.output));
  if (is_filled && !arguments.force) {
    throw ConfigError(fmt::format("[{}] exists already; --force writes over it", arguments.output));
  }
}

int convert(const Arguments& arguments) {
  refuse_to_overwrite(arguments);
  const auto source = eval::open_checkpoint(request_of(arguments));
  const auto files =
      eval::write_checkpoint(arguments.output, format_of(arguments.format), source, matcher(arguments.allow_missing));
  fmt::print("{}: {}, {} tensors, {:.1f} M parameters, {}\n", arguments.input, source.format, source.tensors.size(),
             static_cast<double>(models::parameter_count(source.config)) / 1e6,
             source.config.quick_gelu ? "QuickGELU" : "GELU");
  for (const auto& file : files) fmt::print("wrote {} ({:.1f} MB)\n", file.string(), fs::file_size(file) / 1e6);
  return tools::kDone;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Converts a checkpoint. Read: open_clip and transformers folders, runs of clip_train, safetensors, files of "
      "torch.save, OpenAI's TorchScript archives. Tensors keep their values and, but for --to openai, their dtypes.",
      "clip_convert");
  Arguments arguments;
  app.add_option("input", arguments.input, "a checkpoint's folder or weights file")->required();
  app.add_option("output", arguments.output, "a folder, or for --to openai a file")->required();
  app.add_option("--to", arguments.format, "open_clip: a folder; openai: a state dict; hf: a CLIPModel folder")
      ->check(CLI::IsMember({"open_clip", "openai", "hf"}))
      ->capture_default_str();
  app.add_option("--model", arguments.model, "a shipped model's name or JSON file, for weights without a config");
  app.add_option("--image-size", arguments.image_size, "resize the position embeddings to this many pixels")
      ->check(tools::positive());
  app.add_option("--context-length", arguments.context_length, "resize the text's position embeddings")
      ->check(tools::positive());
  app.add_option("--position-resize", arguments.position_resize, "bicubic as open_clip, bilinear as Google")
      ->check(CLI::IsMember({"bicubic", "bilinear"}))
      ->capture_default_str();
  app.add_option("--allow-missing", arguments.allow_missing,
                 "names of tensors that the input may lack and the output then lacks, too (regular expression)");
  app.add_flag("--force", arguments.force, "write over existing files");
  return contrastive::tools::run_program(app, argc, argv, [&] { return convert(arguments); });
}
