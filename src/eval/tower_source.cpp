#include "contrastive/eval/tower_source.h"

#include <algorithm>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "contrastive/core/config_node.h"
#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"
#include "contrastive/core/log.h"
#include "contrastive/core/tensor_file.h"
#include "contrastive/eval/checkpoint_source.h"
#include "contrastive/eval/preprocess_config.h"
#include "contrastive/models/position_embeddings.h"
#include "contrastive/models/tower.h"
#include "contrastive/models/tower_weights.h"
#include "contrastive/models/weight_names.h"

#include "eval/google_weights.h"

namespace contrastive::eval {
namespace {

namespace fs = std::filesystem;

constexpr const char* kImagePrefix = "visual.";
constexpr const char* kTextPrefix = "text.";

/// Whatever open_checkpoint knows as a folder of a whole model.
bool is_model_folder(const fs::path& path) {
  if (!fs::is_directory(path)) return false;
  if (fs::exists(path / kConfigFile) || fs::exists(path / "checkpoints" / "latest" / kConfigFile)) return true;
  const auto config = path / "config.json";
  if (!fs::exists(config)) return false;
  const auto document = load_config(config);
  const auto* type = document.find("model_type");
  return type != nullptr && (type->scalar == "clip" || type->scalar == "siglip");
}

bool has_image_tower_of_clip(const std::vector<LazyTensor>& tensors) {
  return std::any_of(tensors.begin(), tensors.end(),
                     [](const auto& tensor) { return tensor.name.starts_with(kImagePrefix); });
}

fs::path weights_file(const fs::path& path) {
  if (!fs::exists(path)) throw CheckpointError(fmt::format("[{}] does not exist", path.string()));
  if (!fs::is_directory(path)) return path;
  for (const char* name : {"model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors"}) {
    if (fs::exists(path / name)) return path / name;
  }
  throw CheckpointError(
      fmt::format("[{}] has no weights; looked for model.safetensors, pytorch_model.bin", path.string()));
}

/// The tensors of one tower's file, and whether they were part of two.
struct TowerTensors {
  std::vector<LazyTensor> tensors;
  bool of_two_towers = false;
};

TowerTensors tower_tensors(const fs::path& file, const std::string& wanted_subtree, const char* usual_subtree) {
  auto tensors = models::without_training_state(models::strip_wrapper_prefix(open_tensor_file(file).tensors));
  const bool both = models::has_two_towers(tensors);
  const auto subtree = wanted_subtree.empty() && both ? usual_subtree : wanted_subtree;
  if (!subtree.empty()) tensors = models::select_subtree(std::move(tensors), subtree);
  return {std::move(tensors), both};
}

std::vector<LazyTensor> without_prefix(const std::vector<LazyTensor>& tensors, const std::string& prefix) {
  std::vector<LazyTensor> result;
  for (const auto& tensor : tensors) {
    if (!tensor.name.starts_with(prefix)) continue;
    result.push_back(tensor);
    result.back().name = tensor.name.substr(prefix.size());
  }
  return result;
}

/// timm's folders say how their weights were trained.
std::optional<image::PreprocessSpec> timm_preprocess(const fs::path& folder, int64_t image_size) {
  const auto file = folder / "config.json";
  if (!fs::exists(file)) return std::nullopt;
  const auto document = load_config(file);
  const auto* config = document.find("pretrained_cfg");
  if (config == nullptr || config->kind != ConfigNode::Kind::map) return std::nullopt;
  auto node = ConfigNode::make_map();
  for (const char* key : {"mean", "std", "interpolation"}) {
    if (const auto* value = config->find(key)) node.add(key, *value);
  }
  if (const auto* share = config->find("crop_pct")) node.add("crop_fraction", *share);
  return load_preprocess(node, image_size);
}

/// Most weights of torch were trained with ImageNet's mean and deviation.
image::PreprocessSpec imagenet_preprocess(int64_t image_size) {
  image::PreprocessSpec spec;
  spec.size = image_size;
  spec.mean = {0.485F, 0.456F, 0.406F};
  spec.std = {0.229F, 0.224F, 0.225F};
  spec.crop_fraction = 0.875;
  return spec;
}

/// Of a CLIP model's weights file: what stands beside it, or what such models were trained with.
image::PreprocessSpec clip_preprocess(const fs::path& file, int64_t image_size) {
  const auto config_file = file.parent_path() / kConfigFile;
  if (!fs::exists(config_file)) return {.size = image_size};
  const auto document = load_config(config_file);
  const auto* node = document.find("preprocess_cfg");
  return load_preprocess(node == nullptr ? ConfigNode{} : *node, image_size);
}

/// Of weights with timm's names.
image::PreprocessSpec torch_preprocess(const fs::path& file, int64_t image_size) {
  if (const auto told = timm_preprocess(file.parent_path(), image_size)) return *told;
  log(LogLevel::warning,
      fmt::format(
          "[{}] doesn't say how its images are normalised; taken are ImageNet's mean and deviation and a centre "
          "crop of 0.875 (preprocess in the config decides otherwise; AugReg's have mean and std 0.5)",
          file.string()));
  return imagenet_preprocess(image_size);
}

/// What a file can't tell comes from the model, but not what would change its features without a word.
void require_same_pooling(const std::string& location, const models::VisionConfig& found,
                          const models::VisionConfig& expected) {
  const bool same = found.family() == expected.family() && found.pool_type == expected.pool_type &&
                    found.class_token == expected.class_token && found.pre_logits == expected.pre_logits;
  if (same) return;
  const auto describe = [](const models::VisionConfig& config) {
    return fmt::format("{} (pooling {}, class token: {}, pre_logits: {})",
                       config.is_timm() ? config.timm_model_name : "CLIP's own", config.pool_type, config.class_token,
                       config.pre_logits);
  };
  throw CheckpointError(fmt::format("[image.checkpoint {}] holds {}, but the model's image tower is {}", location,
                                    describe(found), describe(expected)));
}

void warn_of_other_gelu(const std::string& location, bool found, bool expected) {
  if (found == expected) return;
  const auto name = [](bool is_tanh) { return is_tanh ? "the GELU's approximation by tanh" : "the exact GELU"; };
  log(LogLevel::warning,
      fmt::format("[{}] was trained with {}, the model computes {}", location, name(found), name(expected)));
}

/// Resizes the table of a tower alone.
void fit_image_positions(std::vector<LazyTensor>& tensors, const models::VisionConfig& config, bool is_google) {
  for (auto& tensor : tensors) tensor.name = kImagePrefix + tensor.name;
  models::ModelConfig whole;
  whole.vision_cfg = config;
  const auto mode = is_google ? models::PositionResize::bilinear : models::PositionResize::bicubic;
  for (const auto& name : models::fit_positions(tensors, whole, mode)) {
    log(LogLevel::info, fmt::format("{} is resized to images of {} pixels", name, config.image_size));
  }
  tensors = without_prefix(tensors, kImagePrefix);
}

ImageTowerSource image_tower_of_model(const std::string& location, const TowerLocation& place,
                                      const std::optional<models::VisionConfig>& expected) {
  CheckpointRequest request;
  request.path = place.path;
  if (expected) request.image_size = expected->image_size;
  auto source = open_checkpoint(request);
  if (expected) require_same_pooling(location, source.config.vision_cfg, *expected);
  return {source.format, source.config.vision_cfg, source.config.embed_dim, source.preprocess,
          without_prefix(source.tensors, kImagePrefix)};
}

void refuse_subtree(const std::string& location, const TowerLocation& place) {
  if (place.subtree.empty()) return;
  throw CheckpointError(fmt::format("[{}] is a model of CLIP's kind, which has no subtrees", location));
}

/// The text tower of a model that open_checkpoint opens.
TextTowerSource text_tower_of_model(const TowerLocation& place, const std::optional<models::TextConfig>& expected) {
  CheckpointRequest request;
  request.path = place.path;
  if (expected) request.context_length = expected->context_length;
  auto whole = open_checkpoint(request);
  TextTowerSource source{whole.format, whole.config.text_cfg, {}, whole.folder};
  for (auto& tensor : whole.tensors) {
    if (tensor.name.starts_with(kImagePrefix) || tensor.name.starts_with("logit_")) continue;
    if (tensor.name.starts_with(kTextPrefix)) tensor.name = tensor.name.substr(std::string(kTextPrefix).size());
    source.tensors.push_back(std::move(tensor));
  }
  return source;
}

}  // namespace

TowerLocation parse_tower_location(const std::string& text) {
  const auto colon = text.rfind(':');
  if (colon == std::string::npos || fs::exists(text)) return {text, ""};
  return {text.substr(0, colon), text.substr(colon + 1)};
}

ImageTowerSource open_image_tower(const std::string& location, const std::optional<models::VisionConfig>& expected) {
  const auto place = parse_tower_location(location);
  if (is_model_folder(place.path)) {
    refuse_subtree(location, place);
    return image_tower_of_model(location, place, expected);
  }
  const auto file = weights_file(place.path);
  auto [tensors, of_two_towers] = tower_tensors(file, place.subtree, "img");
  const bool is_clip = has_image_tower_of_clip(tensors);
  if (is_clip) refuse_subtree(location, place);
  if (is_clip && !expected) return image_tower_of_model(location, place, expected);
  models::ImageTowerOptions options;
  options.keep_head = (of_two_towers || place.subtree == "img") && (!expected || expected->has_projection());
  if (expected) {
    options.heads = expected->family() == models::TimmFamily::vit ? expected->heads() : 0;
    options.norm_groups = expected->norm_groups;
  }
  auto weights = models::image_tower_weights(std::move(tensors), options);
  const bool is_google = detail::is_google_file(file);
  ImageTowerSource source{weights.format, weights.config, weights.embed_dim, {}, std::move(weights.tensors)};
  if (expected) {
    require_same_pooling(location, source.config, *expected);
    if (is_google) warn_of_other_gelu(location, source.config.gelu_tanh, expected->gelu_tanh);
    source.config = *expected;
    fit_image_positions(source.tensors, source.config, is_google);
  }
  const auto size = source.config.image_size;
  source.preprocess = is_google ? detail::google_preprocess(size)
                      : is_clip ? clip_preprocess(file, size)
                                : torch_preprocess(file, size);
  return source;
}

TextTowerSource open_text_tower(const std::string& location, const std::optional<models::TextConfig>& expected) {
  const auto place = parse_tower_location(location);
  if (is_model_folder(place.path)) {
    refuse_subtree(location, place);
    return text_tower_of_model(place, expected);
  }
  const auto file = weights_file(place.path);
  auto [tensors, of_two_towers] = tower_tensors(file, place.subtree, "txt");
  if (has_image_tower_of_clip(tensors)) {
    refuse_subtree(location, place);
    return text_tower_of_model(place, expected);
  }
  TextTowerSource source;
  source.folder = fs::is_directory(place.path) ? place.path : place.path.parent_path();
  const auto config_file = source.folder / "config.json";
  models::TextTowerWeights weights;
  if (!detail::is_google_file(file) && fs::exists(config_file)) {
    weights = models::text_tower_from_bert_config(load_config(config_file), std::move(tensors));
  } else {
    models::TextTowerOptions options;
    options.heads = expected ? expected->heads : 0;
    weights = models::text_tower_weights(std::move(tensors), options);
  }
  source.format = weights.format;
  source.config = expected ? *expected : detail::with_lit_tokenizer(weights.config);
  if (expected && expected->is_bert() != weights.config.is_bert()) {
    throw CheckpointError(fmt::format("[text.checkpoint {}] holds {}, but the model's text tower is {}", location,
                                      weights.format, expected->is_bert() ? "a BERT" : "CLIP's own transformer"));
  }
  if (expected) warn_of_other_gelu(location, weights.config.gelu_tanh, expected->gelu_tanh);
  source.tensors = std::move(weights.tensors);
  return source;
}

std::string image_tower_fingerprint(const models::ModelConfig& config, const std::vector<LazyTensor>& tensors) {
  models::ModelConfig plain;
  plain.quick_gelu = config.quick_gelu;
  plain.vision_cfg = config.vision_cfg;
  plain.vision_cfg.proj_type = "none";
  plain.vision_cfg.proj_bias = false;
  plain.vision_cfg.patch_dropout = 0;
  const auto document = models::to_node(plain);
  auto text = fmt::format("{} {}\n", to_json(*document.find("vision_cfg"), -1), config.quick_gelu);
  auto sorted = tensors;
  std::erase_if(sorted, [](const auto& tensor) { return models::is_projection(tensor.name); });
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  for (const auto& tensor : sorted) {
    const auto values = tensor.load().to(at::kFloat).contiguous();
    const auto* bytes = static_cast<const uint8_t*>(values.const_data_ptr());
    text += fmt::format("{} {}\n", tensor.name, sha256_hex({bytes, static_cast<size_t>(values.nbytes())}));
  }
  return sha256_hex({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

}  // namespace contrastive::eval
