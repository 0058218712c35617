#include "contrastive/eval/checkpoint_source.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/config_node.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/log.h"
#include "contrastive/core/options.h"
#include "contrastive/core/tensor_file.h"
#include "contrastive/eval/preprocess_config.h"
#include "contrastive/models/hf_config.h"
#include "contrastive/models/tower_weights.h"
#include "contrastive/models/weight_names.h"
#include "contrastive/text/open_tokenizer.h"

#include "eval/activation.h"
#include "eval/google_weights.h"

namespace contrastive::eval {
namespace {

namespace fs = std::filesystem;
using models::WeightLayout;

constexpr const char* kHfConfigFile = "config.json";
constexpr const char* kHfPreprocessFile = "preprocessor_config.json";
constexpr const char* kIndexSuffix = ".index.json";

/// The places of the weights in open_clip's folders, in its order, and in those of transformers.
const std::vector<std::string> kOpenClipWeights = {"open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
                                                   "open_clip_pytorch_model.bin", kWeightsFile, "pytorch_model.bin"};
const std::vector<std::string> kHfWeights = {kWeightsFile, "model.safetensors.index.json", "pytorch_model.bin",
                                             "pytorch_model.bin.index.json"};

/// The file of the first name that is there.
fs::path weights_in(const fs::path& folder, const std::vector<std::string>& names) {
  for (const auto& name : names) {
    if (fs::exists(folder / name)) return folder / name;
  }
  throw CheckpointError(fmt::format("[{}] has no weights; looked for {}", folder.string(), fmt::join(names, ", ")));
}

/// The shards that an index names, each once. Source: transformers, "weight_map" of model.safetensors.index.json.
TensorFile open_shards(const fs::path& index_file) {
  const auto index = load_config(index_file);
  const auto* weight_map = index.find("weight_map");
  if (weight_map == nullptr || weight_map->kind != ConfigNode::Kind::map) {
    throw CheckpointError(fmt::format("[{}] has no weight_map", index_file.string()));
  }
  std::map<std::string, std::set<std::string>> names_by_file;
  for (const auto& entry : weight_map->entries) names_by_file[entry.value.scalar].insert(entry.key);
  TensorFile all;
  for (const auto& [name, wanted] : names_by_file) {
    if (name.empty() || fs::path(name).filename() != name) {
      throw CheckpointError(
          fmt::format("[{}] names the shard '{}', which is not a file beside it", index_file.string(), name));
    }
    auto missing = wanted;
    for (auto& tensor : open_tensor_file(index_file.parent_path() / name).tensors) {
      if (missing.erase(tensor.name) == 1) all.tensors.push_back(std::move(tensor));
    }
    if (!missing.empty()) {
      throw CheckpointError(
          fmt::format("[{}] has no tensor {}, which {} promises", name, *missing.begin(), index_file.string()));
    }
  }
  return all;
}

TensorFile open_weights(const fs::path& file) {
  auto opened = file.string().ends_with(kIndexSuffix) ? open_shards(file) : open_tensor_file(file);
  opened.tensors = models::strip_wrapper_prefix(std::move(opened.tensors));
  return opened;
}

/// A weights file, and the folder whose configs are its own.
struct Place {
  fs::path folder;
  std::optional<fs::path> weights;  ///< none: to be looked for in the folder
};

/// A run's folder stands for its latest checkpoint.
Place find_place(const fs::path& path) {
  if (!fs::exists(path)) throw CheckpointError(fmt::format("[{}] does not exist", path.string()));
  if (!fs::is_directory(path)) return {path.has_parent_path() ? path.parent_path() : fs::path("."), path};
  const auto latest = path / "checkpoints" / "latest";
  return {fs::exists(latest) ? latest : path, std::nullopt};
}

/// What models of a family were trained with, where nothing beside the weights says it.
image::PreprocessSpec usual_preprocess(const std::string& model_name, const models::ModelConfig& config) {
  image::PreprocessSpec spec;
  spec.size = config.vision_cfg.image_size;
  if (config.vision_cfg.is_timm()) {
    spec.mean = spec.std = {0.5F, 0.5F, 0.5F};
    spec.resize_mode = image::ResizeMode::squash;
  } else if (model_name.find("CLIPA") != std::string::npos) {
    spec.mean = {0.485F, 0.456F, 0.406F};
    spec.std = {0.229F, 0.224F, 0.225F};
    spec.interpolation = image::Interpolation::bilinear;
    spec.resize_mode = image::ResizeMode::squash;
  }
  return spec;
}

/// With a config of open_clip: a published folder, or a checkpoint of a run.
CheckpointSource from_open_clip_folder(const Place& place) {
  const auto config_file = place.folder / kConfigFile;
  const auto document = load_config(config_file);
  const auto* model_node = document.find("model_cfg");
  if (model_node == nullptr) {
    throw ConfigError(fmt::format("{}: model_cfg: this key is required", config_file.string()));
  }
  CheckpointSource source;
  source.format = "open_clip folder";
  source.config = models::load_model_config(*model_node);
  const auto* preprocess_node = document.find("preprocess_cfg");
  source.preprocess = load_preprocess(preprocess_node != nullptr ? *preprocess_node : ConfigNode{},
                                      source.config.vision_cfg.image_size);
  const auto file = place.weights ? *place.weights : weights_in(place.folder, kOpenClipWeights);
  const auto weights = open_weights(file);
  detail::check_recorded_activation(file, weights, source.config);
  source.tensors = weights.tensors;
  return source;
}

/// With a config of transformers.
CheckpointSource from_hf_folder(const Place& place) {
  CheckpointSource source;
  source.format = "transformers folder";
  source.config = models::model_config_from_hf(load_config(place.folder / kHfConfigFile));
  const auto size = source.config.vision_cfg.image_size;
  const auto preprocess_file = place.folder / kHfPreprocessFile;
  if (fs::exists(preprocess_file)) {
    source.preprocess = load_hf_preprocess(load_config(preprocess_file), size);
  } else {
    source.preprocess = usual_preprocess("", source.config);
  }
  source.tensors = open_weights(place.weights ? *place.weights : weights_in(place.folder, kHfWeights)).tensors;
  return source;
}

/// Weights for which the caller names a model.
CheckpointSource from_named_model(const CheckpointRequest& request, const fs::path& file) {
  CheckpointSource source;
  source.format = "weights file";
  source.config = request.config ? *request.config : models::model_config_from_file(find_model_config(request.model));
  source.preprocess = usual_preprocess(request.model, source.config);
  const auto weights = open_weights(file);
  detail::check_activation(file, weights, source.config, request.model.empty() ? "the config" : request.model);
  source.tensors = weights.tensors;
  return source;
}

/// A LiT or SigLIP model of Google's: sizes and settings are told by the file, as are those of its tokenizer.
CheckpointSource from_two_towers(const fs::path& file, std::vector<LazyTensor> tensors) {
  auto weights = models::two_tower_weights(std::move(tensors));
  CheckpointSource source;
  source.format = weights.format;
  source.config = std::move(weights.config);
  const bool is_lit = !source.config.init_logit_bias;
  if (is_lit) source.config.text_cfg = detail::with_lit_tokenizer(source.config.text_cfg);
  if (!is_lit) source.config.text_cfg.hf_tokenizer_name = "siglip";
  source.tensors = std::move(weights.tensors);
  source.preprocess = detail::google_preprocess(source.config.vision_cfg.image_size);
  source.folder = file;
  return source;
}

/// Weights alone: only OpenAI's and Google's say enough about themselves.
CheckpointSource from_weights_alone(const fs::path& file) {
  if (detail::is_google_file(file)) {
    auto tensors = models::without_training_state(open_tensor_file(file).tensors);
    if (models::has_two_towers(tensors)) return from_two_towers(file, std::move(tensors));
    throw CheckpointError(fmt::format(
        "[{}] holds one tower, not a model: it can be image.checkpoint or text.checkpoint of a run", file.string()));
  }
  const auto weights = open_weights(file);
  if (!detail::is_openai(weights)) {
    throw CheckpointError(
        fmt::format("[{}] comes without a config ({} or {} beside it) and is not OpenAI's, so the "
                    "model can't be known: name it (--model ViT-B-32)",
                    file.string(), kConfigFile, kHfConfigFile));
  }
  CheckpointSource source;
  source.format = weights.is_torchscript ? "OpenAI TorchScript archive" : "OpenAI state dict";
  source.tensors = models::to_open_clip_names(weights.tensors, models::detect_layout(weights.tensors), false);
  source.config = models::infer_openai_config(source.tensors);
  source.preprocess.size = source.config.vision_cfg.image_size;
  return source;
}

bool is_hf_config(const fs::path& file) {
  return fs::exists(file) && load_config(file).find("model_type") != nullptr;
}

CheckpointSource find_out(const CheckpointRequest& request, const Place& place) {
  if (!request.model.empty() || request.config) {
    return from_named_model(request, place.weights ? *place.weights : weights_in(place.folder, kOpenClipWeights));
  }
  if (fs::exists(place.folder / kConfigFile)) return from_open_clip_folder(place);
  if (is_hf_config(place.folder / kHfConfigFile)) return from_hf_folder(place);
  if (place.weights) return from_weights_alone(*place.weights);
  throw CheckpointError(
      fmt::format("[{}] has no {} and no {} of transformers; name the model as well (--model ViT-B-32)",
                  place.folder.string(), kConfigFile, kHfConfigFile));
}

/// A vocabulary that has the name of the weights, as Google publishes them, or a folder with usual names.
struct TokenizerFiles {
  fs::path folder;
  fs::path own;  ///< "": none
};

void copy_replacing(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::copy_file(from, to, fs::copy_options::overwrite_existing, error);
  if (error) throw CheckpointError(fmt::format("[{}] can't be copied: {}", from.string(), error.message()));
}

TokenizerFiles tokenizer_files_of(const fs::path& place) {
  if (place.extension() != ".npz") return {place, {}};
  for (const char* extension : {".txt", ".model"}) {
    auto file = place;
    if (fs::exists(file.replace_extension(extension))) return {place.parent_path(), file};
  }
  return {place.parent_path(), {}};
}

/// Whether the request asks for a model of other sizes than the weights may have.
bool may_resize(const CheckpointRequest& request) {
  return !request.model.empty() || request.config || request.image_size || request.context_length;
}

}  // namespace

CheckpointSource open_checkpoint(const CheckpointRequest& request) {
  const auto place = find_place(request.path);
  auto source = find_out(request, place);
  const bool is_google = !source.folder.empty();
  if (!is_google) source.folder = place.folder;
  const auto layout = models::detect_layout(source.tensors);
  source.tensors = models::to_open_clip_names(std::move(source.tensors), layout, source.config.custom_text);
  auto& config = source.config;
  config.vision_cfg.image_size = request.image_size.value_or(config.vision_cfg.image_size);
  config.text_cfg.context_length = request.context_length.value_or(config.text_cfg.context_length);
  source.preprocess.size = config.vision_cfg.image_size;
  models::validate(config);
  if (may_resize(request)) {
    const auto mode = is_google ? models::PositionResize::bilinear : request.position_resize;
    const auto resized = models::fit_positions(source.tensors, config, mode);
    for (const auto& name : resized) {
      log(LogLevel::info, fmt::format("[{}] {} is resized to the model's size", request.path.string(), name));
    }
  }
  return source;
}

std::shared_ptr<const text::Tokenizer> open_tokenizer(const models::ModelConfig& config, const fs::path& folder) {
  const auto& text = config.text_cfg;
  const auto files = tokenizer_files_of(folder);
  return text::open_tokenizer({.folder = files.folder,
                               .file = files.own,
                               .context_length = text.context_length,
                               .vocab_size = text.vocab_size,
                               .hf_tokenizer_name = text.hf_tokenizer_name,
                               .clean = text.tokenizer_clean,
                               .strip_sep_token = text.tokenizer_strip_sep,
                               .policy = text.tokenizer_policy});
}

std::vector<std::string> copy_tokenizer_files(const fs::path& from, const fs::path& to) {
  std::vector<std::string> copied;
  const auto files = tokenizer_files_of(from);
  if (!files.own.empty()) {
    const char* name = files.own.extension() == ".txt" ? "vocab.txt" : "spiece.model";
    copy_replacing(files.own, to / name);
    return {name};
  }
  for (const char* name : {"spiece.model", "tokenizer.model", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.json",
                           "tokenizer_config.json", "special_tokens_map.json"}) {
    std::error_code error;
    if (files.folder.empty() || !fs::is_regular_file(files.folder / name, error)) continue;
    if (fs::equivalent(files.folder, to, error)) continue;
    copy_replacing(files.folder / name, to / name);
    copied.emplace_back(name);
  }
  return copied;
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
  throw ConfigError(fmt::format("model '{}' is neither a file nor a shipped config{}", name_or_file,
                                suggestion.empty() ? fmt::format("; shipped: {}", fmt::join(names, ", "))
                                                   : fmt::format(" (did you mean {}?)", suggestion)));
}

}  // namespace contrastive::eval
