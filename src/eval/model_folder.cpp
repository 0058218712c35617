#include "contrastive/eval/model_folder.h"

#include <algorithm>
#include <array>
#include <vector>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/options.h"
#include "contrastive/core/safetensors.h"

namespace contrastive::eval {
namespace {

namespace fs = std::filesystem;
using image::Interpolation;
using image::PreprocessSpec;
using image::ResizeMode;

/// preprocess_cfg as open_clip writes it: also with keys that say what the model's config says.
struct PreprocessFields {
  std::vector<double> mean;
  std::vector<double> std;
  std::string interpolation = "bicubic";
  std::string resize_mode = "shortest";
  int64_t fill_color = 0;
  std::string mode = "RGB";
  ConfigNode size;

  template <typename Fields>
  void fields(Fields& f) {
    f("mean", mean);
    f("std", std);
    f("interpolation", interpolation, one_of({"bicubic", "bilinear", "nearest"}));
    f("resize_mode", resize_mode, one_of({"shortest", "longest", "squash"}));
    f("fill_color", fill_color, between(0, 255));
    f("mode", mode, one_of({"RGB"}));
    f("size", size);
  }

  void validate(const OptionScope& scope) const {
    if (!mean.empty() && mean.size() != 3) scope.fail("mean", "expected three numbers");
    if (!std.empty() && std.size() != 3) scope.fail("std", "expected three numbers");
    for (const double value : std) {
      if (value <= 0) scope.fail("std", "must be greater than 0");
    }
  }
};

void copy_three(const std::vector<double>& from, std::array<float, 3>& to) {
  for (size_t i = 0; i < from.size(); ++i) to[i] = static_cast<float>(from[i]);
}

ConfigNode three_numbers(const std::array<float, 3>& values) {
  std::vector<ConfigNode> items;
  for (const float value : values) items.push_back(ConfigNode::make_scalar(fmt::format("{}", value)));
  return ConfigNode::make_sequence(std::move(items));
}

const char* name_of(Interpolation interpolation) {
  switch (interpolation) {
    case Interpolation::nearest:
      return "nearest";
    case Interpolation::bilinear:
      return "bilinear";
    case Interpolation::bicubic:
      return "bicubic";
  }
  return "";
}

const char* name_of(ResizeMode mode) {
  switch (mode) {
    case ResizeMode::shortest:
      return "shortest";
    case ResizeMode::longest:
      return "longest";
    case ResizeMode::squash:
      return "squash";
  }
  return "";
}

LoadedModel load(const models::ModelConfig& config, const PreprocessSpec& preprocess, const fs::path& weights) {
  LoadedModel loaded{.model = models::ClipModel(config), .preprocess = preprocess};
  const SafetensorsFile file(weights);
  try {
    loaded.model->load_state(file.tensors());
  } catch (const CheckpointError& error) {
    throw CheckpointError(fmt::format("[{}] does not fit its model config: {}", weights.string(), error.what()));
  }
  loaded.model->eval();
  return loaded;
}

fs::path weights_beside(const fs::path& folder) {
  for (const char* name : {kWeightsFile, "open_clip_model.safetensors"}) {
    if (fs::exists(folder / name)) return folder / name;
  }
  throw CheckpointError(
      fmt::format("[{}] has neither {} nor open_clip_model.safetensors", folder.string(), kWeightsFile));
}

}  // namespace

ConfigNode to_node(const PreprocessSpec& preprocess) {
  auto node = ConfigNode::make_map();
  node.add("mean", three_numbers(preprocess.mean));
  node.add("std", three_numbers(preprocess.std));
  node.add("interpolation", ConfigNode::make_scalar(name_of(preprocess.interpolation)));
  node.add("resize_mode", ConfigNode::make_scalar(name_of(preprocess.resize_mode)));
  if (preprocess.fill_color != 0) {
    node.add("fill_color", ConfigNode::make_scalar(std::to_string(preprocess.fill_color)));
  }
  return node;
}

PreprocessSpec load_preprocess(const ConfigNode& node, int64_t image_size) {
  const auto fields = read_options<PreprocessFields>(node);
  PreprocessSpec spec;
  spec.size = image_size;
  copy_three(fields.mean, spec.mean);
  copy_three(fields.std, spec.std);
  for (const auto value : {Interpolation::nearest, Interpolation::bilinear, Interpolation::bicubic}) {
    if (fields.interpolation == name_of(value)) spec.interpolation = value;
  }
  for (const auto value : {ResizeMode::shortest, ResizeMode::longest, ResizeMode::squash}) {
    if (fields.resize_mode == name_of(value)) spec.resize_mode = value;
  }
  spec.fill_color = static_cast<uint8_t>(fields.fill_color);
  return spec;
}

std::string open_clip_config(const models::ModelConfig& config, const PreprocessSpec& preprocess) {
  auto node = ConfigNode::make_map();
  node.add("model_cfg", models::to_node(config));
  node.add("preprocess_cfg", to_node(preprocess));
  return to_json(node) + "\n";
}

LoadedModel load_model_folder(const fs::path& path) {
  const bool is_folder = fs::is_directory(path);
  if (!is_folder && !fs::exists(path)) throw CheckpointError(fmt::format("[{}] does not exist", path.string()));
  const auto folder = is_folder ? path : (path.has_parent_path() ? path.parent_path() : fs::path("."));
  const auto config_file = folder / kConfigFile;
  if (!fs::exists(config_file)) {
    throw CheckpointError(fmt::format("[{}] has no {}; name the model as well (--model ViT-B-32 --weights FILE)",
                                      folder.string(), kConfigFile));
  }
  const auto document = load_config(config_file);
  const auto* model_node = document.find("model_cfg");
  if (model_node == nullptr)
    throw ConfigError(fmt::format("{}: model_cfg: this key is required", config_file.string()));
  const auto config = models::load_model_config(*model_node);
  const auto* preprocess_node = document.find("preprocess_cfg");
  const auto preprocess =
      load_preprocess(preprocess_node != nullptr ? *preprocess_node : ConfigNode{}, config.vision_cfg.image_size);
  return load(config, preprocess, is_folder ? weights_beside(folder) : path);
}

fs::path find_model_config(const std::string& name_or_file) {
  if (fs::is_regular_file(name_or_file)) return name_or_file;
  std::vector<std::string> names;
  const auto folder = find_resource("configs/models");
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".json") names.push_back(entry.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  if (std::find(names.begin(), names.end(), name_or_file) != names.end()) return folder / (name_or_file + ".json");
  const auto suggestion = nearest_word(name_or_file, names);
  throw ConfigError(fmt::format("model '{}' is neither a file nor a shipped config{}; shipped: {}", name_or_file,
                                suggestion.empty() ? "" : fmt::format(" (did you mean {}?)", suggestion),
                                fmt::join(names, ", ")));
}

LoadedModel load_named_model(const std::string& model, const fs::path& weights) {
  const auto config = models::model_config_from_file(find_model_config(model));
  PreprocessSpec preprocess;
  preprocess.size = config.vision_cfg.image_size;
  return load(config, preprocess, weights);
}

}  // namespace contrastive::eval
