#include "contrastive/models/hf_config.h"

#include <charconv>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "contrastive/core/error.h"

namespace contrastive::models {
namespace {

/// The end token's id in configs made before transformers 4.31, which stands for "pool at the highest id".
constexpr int64_t kLegacyEosId = 2;

/// What transformers assumes where a config says nothing.
struct TowerDefaults {
  int64_t hidden_size, intermediate_size, num_hidden_layers, num_attention_heads;
  const char* hidden_act;
  double layer_norm_eps;
};

constexpr TowerDefaults kClipText{512, 2048, 12, 8, "quick_gelu", 1e-5};
constexpr TowerDefaults kClipVision{768, 3072, 12, 12, "quick_gelu", 1e-5};
constexpr TowerDefaults kSiglip{768, 3072, 12, 12, "gelu_pytorch_tanh", 1e-6};

/// One object of the document; what it doesn't mention has the value the caller names.
class Section {
 public:
  Section(const ConfigNode* node, std::string name) : node_(node), name_(std::move(name)) {}

  double number(const char* key, double standard) const {
    const auto* value = find(key);
    if (value == nullptr) return standard;
    double result = 0;
    const auto& text = value->scalar;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), result);
    if (error != std::errc() || end != text.data() + text.size()) fail(key, *value, "a number");
    return result;
  }

  int64_t integer(const char* key, int64_t standard) const {
    const double value = number(key, static_cast<double>(standard));
    if (std::floor(value) != value || std::abs(value) > 1e15) fail(key, *find(key), "an integer");
    return static_cast<int64_t>(value);
  }

  std::string text(const char* key, const std::string& standard) const {
    const auto* value = find(key);
    return value == nullptr ? standard : value->scalar;
  }

  [[noreturn]] void fail(const char* key, const ConfigNode& value, const std::string& expected) const {
    throw ConfigError(fmt::format("{}: {}.{}: expected {}, found {}", value.place.to_string(), name_, key, expected,
                                  to_json(value, -1)));
  }

  const ConfigNode* find(const char* key) const {
    const auto* value = node_ == nullptr ? nullptr : node_->find(key);
    if (value == nullptr || value->kind == ConfigNode::Kind::null) return nullptr;
    if (value->kind != ConfigNode::Kind::scalar) fail(key, *value, "a single value");
    return value;
  }

 private:
  const ConfigNode* node_;
  std::string name_;
};

struct Tower {
  int64_t width, layers, heads;
  double mlp_ratio, norm_eps;
  std::string activation;
};

/// A ratio with which width * ratio, cut to an integer, is exactly `hidden`.
double mlp_ratio(int64_t width, int64_t hidden) {
  const double ratio = static_cast<double>(hidden) / static_cast<double>(width);
  const bool is_exact = static_cast<int64_t>(static_cast<double>(width) * ratio) == hidden;
  return is_exact ? ratio : std::nextafter(ratio, ratio + 1);
}

Tower read_tower(const Section& section, const TowerDefaults& defaults) {
  Tower tower;
  tower.width = section.integer("hidden_size", defaults.hidden_size);
  tower.layers = section.integer("num_hidden_layers", defaults.num_hidden_layers);
  tower.heads = section.integer("num_attention_heads", defaults.num_attention_heads);
  tower.norm_eps = section.number("layer_norm_eps", defaults.layer_norm_eps);
  tower.activation = section.text("hidden_act", defaults.hidden_act);
  if (tower.width < 1 || tower.heads < 1 || tower.layers < 1) {
    throw ConfigError("[config.json] hidden_size, num_hidden_layers and num_attention_heads must be at least 1");
  }
  tower.mlp_ratio = mlp_ratio(tower.width, section.integer("intermediate_size", defaults.intermediate_size));
  const auto* activation = section.find("hidden_act");
  const bool is_known = tower.activation == "quick_gelu" || tower.activation == "gelu" ||
                        tower.activation == "gelu_pytorch_tanh" || tower.activation == "gelu_new";
  if (!is_known) section.fail("hidden_act", *activation, "quick_gelu, gelu, gelu_new or gelu_pytorch_tanh");
  return tower;
}

bool is_tanh(const Tower& tower) {
  return tower.activation == "gelu_pytorch_tanh" || tower.activation == "gelu_new";
}

VisionConfig vision_from(const Tower& tower, const Section& section, int64_t patch_size) {
  VisionConfig vision;
  vision.layers = {tower.layers};
  vision.width = tower.width;
  if (tower.width % tower.heads != 0) {
    throw ConfigError(
        fmt::format("[config.json] vision_config: {} heads don't divide the width {}", tower.heads, tower.width));
  }
  vision.head_width = tower.width / tower.heads;
  vision.mlp_ratio = tower.mlp_ratio;
  vision.norm_eps = tower.norm_eps;
  vision.gelu_tanh = is_tanh(tower);
  vision.image_size = section.integer("image_size", 224);
  vision.patch_size = section.integer("patch_size", patch_size);
  if (section.integer("num_channels", 3) != 3) section.fail("num_channels", *section.find("num_channels"), "3");
  return vision;
}

TextConfig text_from(const Tower& tower, const Section& section, int64_t context_length, int64_t vocab_size) {
  TextConfig text;
  text.width = tower.width;
  text.layers = tower.layers;
  text.heads = tower.heads;
  text.mlp_ratio = tower.mlp_ratio;
  text.norm_eps = tower.norm_eps;
  text.gelu_tanh = is_tanh(tower);
  text.context_length = section.integer("max_position_embeddings", context_length);
  text.vocab_size = section.integer("vocab_size", vocab_size);
  return text;
}

ModelConfig clip_from(const Section& root, const Section& text_section, const Section& vision_section) {
  const auto text = read_tower(text_section, kClipText), vision = read_tower(vision_section, kClipVision);
  ModelConfig config;
  config.embed_dim = root.integer("projection_dim", 512);
  config.init_logit_scale = root.number("logit_scale_init_value", config.init_logit_scale);
  config.vision_cfg = vision_from(vision, vision_section, 32);
  config.text_cfg = text_from(text, text_section, 77, 49408);
  config.quick_gelu = text.activation == "quick_gelu" && vision.activation == "quick_gelu";
  if ((text.activation == "quick_gelu") != (vision.activation == "quick_gelu")) {
    throw ConfigError("[config.json] hidden_act: only one of the towers has quick_gelu, which is not supported");
  }
  const auto eos = text_section.integer("eos_token_id", config.text_cfg.vocab_size - 1);
  if (eos != kLegacyEosId && eos != config.text_cfg.vocab_size - 1) {  // else the end is the highest id
    config.text_cfg.pool_type = "eos";
    config.text_cfg.eos_id = eos;
  }
  return config;
}

/// The tower of timm whose sizes come nearest; what differs is kept beside the name.
std::string nearest_timm_name(const VisionConfig& vision) {
  const auto size = std::to_string(vision.image_size);
  if (vision.width == 1024) return "vit_large_patch16_siglip_" + size;
  if (vision.width == 1152) return fmt::format("vit_so400m_patch{}_siglip_{}", vision.patch_size == 16 ? 16 : 14, size);
  if (vision.width == 1536) return "vit_giantopt_patch16_siglip_" + size;
  return fmt::format("vit_base_patch{}_siglip_{}", vision.patch_size == 32 ? 32 : 16, size);
}

ModelConfig siglip_from(const Section& text_section, const Section& vision_section) {
  const auto text = read_tower(text_section, kSiglip), vision = read_tower(vision_section, kSiglip);
  ModelConfig config;
  config.custom_text = true;
  config.init_logit_scale = std::log(10.0);
  config.init_logit_bias = -10.0;
  config.vision_cfg = vision_from(vision, vision_section, 16);
  config.vision_cfg.timm_model_name = nearest_timm_name(config.vision_cfg);
  config.vision_cfg.class_token = false;
  config.vision_cfg.pool_type = "map";
  config.text_cfg = text_from(text, text_section, 64, 32000);
  config.text_cfg.no_causal_mask = true;
  config.text_cfg.pool_type = "last";
  config.text_cfg.proj_bias = true;
  config.text_cfg.hf_tokenizer_name = "timm/ViT-B-16-SigLIP";
  config.text_cfg.tokenizer_clean = "canonicalize";
  config.embed_dim = text_section.integer("projection_size", config.text_cfg.width);
  return config;
}

ConfigNode scalar(const std::string& text) {
  return ConfigNode::make_scalar(text);
}
ConfigNode number(int64_t value) {
  return scalar(fmt::format("{}", value));
}
ConfigNode number(double value) {
  return scalar(fmt::format("{}", value));
}

const char* act_name(bool quick_gelu, bool tanh) {
  if (quick_gelu) return "quick_gelu";
  return tanh ? "gelu_pytorch_tanh" : "gelu";
}

ConfigNode tower_node(const char* type, int64_t width, double ratio, int64_t layers, int64_t heads, const char* act,
                      double eps, int64_t projection) {
  auto node = ConfigNode::make_map();
  node.add("model_type", scalar(type));
  node.add("hidden_size", number(width));
  node.add("intermediate_size", number(static_cast<int64_t>(static_cast<double>(width) * ratio)));
  node.add("num_hidden_layers", number(layers));
  node.add("num_attention_heads", number(heads));
  node.add("hidden_act", scalar(act));
  node.add("layer_norm_eps", number(eps));
  node.add("projection_dim", number(projection));
  return node;
}

}  // namespace

ModelConfig model_config_from_hf(const ConfigNode& config) {
  if (config.kind != ConfigNode::Kind::map) throw ConfigError("[config.json] expected an object");
  const Section root(&config, "config");
  // Old files have the towers' fields under another name, some have both.
  const auto part = [&](const char* key, const char* old_key) {
    const auto* node = config.find(key);
    const bool is_filled = node != nullptr && !node->entries.empty();
    return Section(is_filled || config.find(old_key) == nullptr ? node : config.find(old_key), key);
  };
  const auto text = part("text_config", "text_config_dict"), vision = part("vision_config", "vision_config_dict");
  const auto type = root.text("model_type", "");
  ModelConfig result;
  if (type == "clip") {
    result = clip_from(root, text, vision);
  } else if (type == "siglip") {
    result = siglip_from(text, vision);
  } else {
    throw ConfigError(
        fmt::format("{}: model_type: expected clip or siglip, found '{}'", config.place.to_string(), type));
  }
  validate(result);
  return result;
}

ConfigNode to_hf_config(const ModelConfig& config) {
  const auto& vision = config.vision_cfg;
  const auto& text = config.text_cfg;
  auto text_node = tower_node("clip_text_model", text.width, text.mlp_ratio, text.layers, text.heads,
                              act_name(config.quick_gelu, text.gelu_tanh), text.norm_eps, config.embed_dim);
  text_node.add("max_position_embeddings", number(text.context_length));
  text_node.add("vocab_size", number(text.vocab_size));
  text_node.add("bos_token_id", number(text.vocab_size - 2));
  text_node.add("eos_token_id", number(text.pool_type == "eos" ? *text.eos_id : text.vocab_size - 1));
  auto vision_node =
      tower_node("clip_vision_model", vision.width, vision.mlp_ratio, vision.layers.front(), vision.heads(),
                 act_name(config.quick_gelu, vision.gelu_tanh), vision.norm_eps, config.embed_dim);
  vision_node.add("image_size", number(vision.image_size));
  vision_node.add("patch_size", number(vision.patch_size));
  vision_node.add("num_channels", number(int64_t{3}));
  auto root = ConfigNode::make_map();
  root.add("architectures", ConfigNode::make_sequence({scalar("CLIPModel")}));
  root.add("model_type", scalar("clip"));
  root.add("projection_dim", number(config.embed_dim));
  root.add("logit_scale_init_value", number(config.init_logit_scale));
  root.add("text_config", std::move(text_node));
  root.add("vision_config", std::move(vision_node));
  root.add("dtype", scalar("float32"));
  root.add("torch_dtype", scalar("float32"));  // the same for transformers before 4.56
  return root;
}

}  // namespace contrastive::models
