#include "contrastive/models/model_config.h"

#include <algorithm>
#include <charconv>
#include <functional>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"
#include "contrastive/core/options.h"

namespace contrastive::models {
namespace {

// Far above every published model; they keep a wrong file from asking for all memory there is.
constexpr double kMaxWidth = 1 << 16;
constexpr double kMaxLayers = 1024;
constexpr double kMaxImageSize = 1 << 14;
constexpr double kMaxContext = 1 << 20;
constexpr double kMaxVocabulary = 1 << 26;
constexpr double kMaxMlpRatio = 64;
constexpr size_t kResnetStages = 4;
constexpr int64_t kResnetReduction = 32;

using Report = std::function<void(const std::string& key, const std::string& message)>;

/// A field of open_clip that has to keep the value that switches it off.
struct SwitchedOff {
  const char* key;
  std::vector<std::string> off = {};  ///< accepted beside null; empty: anything, as what would read it is off
  ConfigNode value = {};
};

const std::vector<std::string> kFalse = {"false"};
const std::vector<std::string> kZero = {"0"};
const std::vector<std::string> kNullOnly = {"null"};

std::optional<double> as_number(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

bool same_scalar(const std::string& a, const std::string& b) {
  if (a == b) return true;
  const auto x = as_number(a), y = as_number(b);
  return x && y && *x == *y;
}

bool is_off(const SwitchedOff& field) {
  const auto& value = field.value;
  if (field.off.empty() || value.kind == ConfigNode::Kind::null) return true;
  if (value.kind == ConfigNode::Kind::map) return value.entries.empty();
  if (value.kind != ConfigNode::Kind::scalar) return false;
  return std::any_of(field.off.begin(), field.off.end(),
                     [&](const auto& off) { return same_scalar(value.scalar, off); });
}

void report_unsupported(const std::vector<SwitchedOff>& fields, const OptionScope& scope) {
  for (const auto& field : fields) {
    if (is_off(field)) continue;
    scope.fail(field.key, fmt::format("not supported by this version (only {})", fmt::join(field.off, " or ")));
  }
}

std::vector<SwitchedOff> custom_block_fields() {
  return {{"ls_init_value", kNullOnly},   {"output_tokens", kFalse},   {"act_kwargs", kNullOnly},
          {"norm_kwargs", kNullOnly},     {"block_type", {"default"}}, {"qk_norm", kFalse},
          {"scaled_cosine_attn", kFalse}, {"scale_heads", kFalse},     {"scale_attn_inner", kFalse},
          {"scale_attn", kFalse},         {"scale_fc", kFalse}};
}

std::vector<SwitchedOff> with_custom_block_fields(std::vector<SwitchedOff> fields) {
  for (auto& field : custom_block_fields()) fields.push_back(std::move(field));
  return fields;
}

/// An integer, or a list of integers; nothing if it is neither.
std::optional<std::vector<int64_t>> as_integers(const ConfigNode& node) {
  const auto read = [](const ConfigNode& item, std::vector<int64_t>& values) {
    int64_t value = 0;
    const auto* end = item.scalar.data() + item.scalar.size();
    const auto result = std::from_chars(item.scalar.data(), end, value);
    if (item.kind != ConfigNode::Kind::scalar || item.quoted || result.ec != std::errc() || result.ptr != end)
      return false;
    values.push_back(value);
    return true;
  };
  std::vector<int64_t> values;
  if (node.kind != ConfigNode::Kind::sequence) return read(node, values) ? std::optional(values) : std::nullopt;
  for (const auto& item : node.items) {
    if (!read(item, values)) return std::nullopt;
  }
  return values;
}

void check_layers(const VisionConfig& config, const Report& report) {
  const auto in_range = [](int64_t count) { return count >= 1 && count <= static_cast<int64_t>(kMaxLayers); };
  const bool count_fits = config.layers.size() == 1 || config.layers.size() == kResnetStages;
  if (count_fits && std::all_of(config.layers.begin(), config.layers.end(), in_range)) return;
  report("layers", "expected the number of layers, or a list of 4 (blocks of a ResNet's stages), each at least 1");
}

void check_mlp(int64_t width, double mlp_ratio, const Report& report) {
  if (static_cast<double>(width) * mlp_ratio >= 1) return;
  report("mlp_ratio", fmt::format("leaves no hidden channel at width {}", width));
}

void check_vit(const VisionConfig& config, const Report& report) {
  if (config.width % config.head_width != 0) {
    report("head_width", fmt::format("{} doesn't divide the width {}", config.head_width, config.width));
  }
  if (config.image_size % config.patch_size != 0) {
    report("patch_size", fmt::format("{} doesn't divide the image_size {}", config.patch_size, config.image_size));
  }
  check_mlp(config.width, config.mlp_ratio, report);
}

void check_resnet(const VisionConfig& config, const Report& report) {
  if (config.width % 2 != 0) report("width", fmt::format("must be even for a ResNet, but is {}", config.width));
  if (config.output_width() % config.head_width != 0) {
    report("head_width", fmt::format("{} doesn't divide the attention pool's width {} (32 times the width)",
                                     config.head_width, config.output_width()));
  }
  if (config.image_size % kResnetReduction != 0) {
    report("image_size", fmt::format("must be a multiple of 32 for a ResNet, but is {}", config.image_size));
  }
  if (config.no_ln_pre || config.final_ln_after_pool || config.pool_type != "tok") {
    report("layers", "a ResNet has no no_ln_pre, final_ln_after_pool or pool_type");
  }
}

void check_vision(const VisionConfig& config, const Report& report) {
  check_layers(config, report);
  if (config.width < 1 || config.head_width < 1 || config.patch_size < 1 || config.image_size < 1) {
    return report("width", "width, head_width, patch_size and image_size must be at least 1");
  }
  if (config.pool_type != "tok" && config.pool_type != "avg") {
    report("pool_type", fmt::format("expected tok or avg, found {}", config.pool_type));
  }
  config.is_resnet() ? check_resnet(config, report) : check_vit(config, report);
}

void check_text(const TextConfig& config, const Report& report) {
  if (config.width < 1 || config.heads < 1 || config.layers < 1 || config.context_length < 1 || config.vocab_size < 1) {
    return report("width", "width, heads, layers, context_length and vocab_size must be at least 1");
  }
  if (config.width % config.heads != 0) {
    report("heads", fmt::format("{} don't divide the width {}", config.heads, config.width));
  }
  if (config.pool_type != "argmax" && config.pool_type != "first" && config.pool_type != "last") {
    report("pool_type", fmt::format("expected argmax, first or last, found {}", config.pool_type));
  }
  check_mlp(config.width, config.mlp_ratio, report);
}

Report report_to(const OptionScope& scope) {
  return [&scope](const std::string& key, const std::string& message) { scope.fail(key, message); };
}

/// vision_cfg as it stands in a file.
struct VisionFile {
  VisionConfig config;
  ConfigNode layers = ConfigNode::make_scalar("12");
  ConfigNode image_size = ConfigNode::make_scalar("224");
  std::optional<int64_t> patch_size = 16;  ///< null in the files of ResNets
  std::vector<SwitchedOff> off = with_custom_block_fields({{"image_seq_len", kNullOnly},
                                                           {"patch_dropout", kZero},
                                                           {"attentional_pool", kFalse},
                                                           {"attn_pooler_queries"},
                                                           {"attn_pooler_heads"},
                                                           {"pos_embed_type", {"learnable"}},
                                                           {"timm_model_name", kNullOnly},
                                                           {"timm_model_pretrained"},
                                                           {"timm_pool"},
                                                           {"timm_proj"},
                                                           {"timm_proj_bias"},
                                                           {"timm_drop"},
                                                           {"timm_drop_path"},
                                                           {"timm_model_kwargs"}});

  template <typename Fields>
  void fields(Fields& f) {
    f("image_size", image_size);
    f("layers", layers);
    f("width", config.width, between(1, kMaxWidth));
    f("head_width", config.head_width, between(1, kMaxWidth));
    f("mlp_ratio", config.mlp_ratio, between(0, kMaxMlpRatio));
    f("patch_size", patch_size, between(1, kMaxImageSize));
    f("no_ln_pre", config.no_ln_pre);
    f("final_ln_after_pool", config.final_ln_after_pool);
    f("pool_type", config.pool_type, one_of({"tok", "avg"}));
    for (auto& field : off) f(field.key, field.value);
  }

  void validate(const OptionScope& scope) const {
    report_unsupported(off, scope);
    check_image_size(scope);
    if (as_integers(layers)) {
      check_vision(resolved(), report_to(scope));
    } else {
      scope.fail("layers", "expected the number of layers, or a list of 4");
    }
    if (!patch_size && layers.kind != ConfigNode::Kind::sequence) scope.fail("patch_size", "a ViT needs one");
  }

  void check_image_size(const OptionScope& scope) const {
    const auto sizes = as_integers(image_size);
    const bool square = sizes && (sizes->size() == 1 || (sizes->size() == 2 && sizes->front() == sizes->back()));
    if (!square) {
      scope.fail("image_size", "expected a number of pixels, or two equal ones (only square images are supported)");
    } else if (sizes->front() < 1 || sizes->front() > static_cast<int64_t>(kMaxImageSize)) {
      scope.fail("image_size", fmt::format("must be in [1, {}]", kMaxImageSize));
    }
  }

  VisionConfig resolved() const {
    auto result = config;
    result.layers = as_integers(layers).value_or(result.layers);
    const auto sizes = as_integers(image_size);
    if (sizes && !sizes->empty()) result.image_size = sizes->front();
    result.patch_size = patch_size.value_or(result.patch_size);
    return result;
  }
};

/// text_cfg as it stands in a file.
struct TextFile {
  TextConfig config;
  bool final_ln_after_pool = false;  ///< open_clip accepts it for text, too, without an effect
  std::vector<SwitchedOff> off = with_custom_block_fields({{"text_arch", {"clip"}},
                                                           {"variable_text", kFalse},
                                                           {"hf_tokenizer_name", kNullOnly},
                                                           {"tokenizer_mode", kNullOnly},
                                                           {"tokenizer_kwargs", kNullOnly},
                                                           {"tokenizer_type", {""}},
                                                           {"tiktoken_name", kNullOnly},
                                                           {"embed_cls", kFalse},
                                                           {"pad_id", kZero},
                                                           {"bos_id"},
                                                           {"eos_id"},
                                                           {"proj_bias", kFalse},
                                                           {"proj_type", {"linear"}},
                                                           {"hf_model_name", kNullOnly},
                                                           {"hf_model_pretrained"},
                                                           {"hf_proj_type"},
                                                           {"hf_pooler_type"},
                                                           {"hf_model_config"}});

  template <typename Fields>
  void fields(Fields& f) {
    f("context_length", config.context_length, between(1, kMaxContext));
    f("vocab_size", config.vocab_size, between(1, kMaxVocabulary));
    f("width", config.width, between(1, kMaxWidth));
    f("heads", config.heads, between(1, kMaxWidth));
    f("layers", config.layers, between(1, kMaxLayers));
    f("mlp_ratio", config.mlp_ratio, between(0, kMaxMlpRatio));
    f("no_causal_mask", config.no_causal_mask);
    f("pool_type", config.pool_type, one_of({"argmax", "first", "last"}));
    f("final_ln_after_pool", final_ln_after_pool);
    for (auto& field : off) f(field.key, field.value);
  }

  void validate(const OptionScope& scope) const {
    report_unsupported(off, scope);
    check_text(config, report_to(scope));
  }
};

/// A whole model JSON.
struct ModelFile {
  ModelConfig config;
  VisionFile vision_cfg;
  TextFile text_cfg;
  std::vector<SwitchedOff> off = {{"custom_text", kFalse},           {"init_logit_bias", kNullOnly},
                                  {"nonscalar_logit_scale", kFalse}, {"multimodal_cfg", kNullOnly},
                                  {"audio_cfg", kNullOnly},          {"genlip_cfg", kNullOnly},
                                  {"genlap_cfg", kNullOnly}};

  template <typename Fields>
  void fields(Fields& f) {
    auto embed_dim_check = between(1, kMaxWidth);
    embed_dim_check.required = true;
    f("embed_dim", config.embed_dim, embed_dim_check);
    f("quick_gelu", config.quick_gelu);
    f("init_logit_scale", config.init_logit_scale, between(-10, 10));
    f("vision_cfg", vision_cfg, required());
    f("text_cfg", text_cfg, required());
    for (auto& field : off) f(field.key, field.value);
  }

  void validate(const OptionScope& scope) const { report_unsupported(off, scope); }
};

std::string text_of(bool value) {
  return value ? "true" : "false";
}
std::string text_of(int64_t value) {
  return fmt::format("{}", value);
}
std::string text_of(double value) {
  return fmt::format("{}", value);
}

/// Adds the fields that differ from open_clip's defaults.
class NodeWriter {
 public:
  template <typename T>
  NodeWriter& always(const char* key, const T& value) {
    node_.add(key, ConfigNode::make_scalar(text_of(value)));
    return *this;
  }
  NodeWriter& always(const char* key, ConfigNode value) {
    node_.add(key, std::move(value));
    return *this;
  }
  template <typename T>
  NodeWriter& unless_default(const char* key, const T& value, const T& standard) {
    return value == standard ? *this : always(key, value);
  }
  NodeWriter& unless_default(const char* key, const std::string& value, const std::string& standard) {
    return value == standard ? *this : always(key, ConfigNode::make_scalar(value, /*quoted=*/true));
  }
  ConfigNode take() { return std::move(node_); }

 private:
  ConfigNode node_ = ConfigNode::make_map();
};

ConfigNode layers_node(const std::vector<int64_t>& layers) {
  if (layers.size() == 1) return ConfigNode::make_scalar(text_of(layers.front()));
  std::vector<ConfigNode> items;
  for (const auto count : layers) items.push_back(ConfigNode::make_scalar(text_of(count)));
  return ConfigNode::make_sequence(std::move(items));
}

ConfigNode vision_node(const VisionConfig& config) {
  const VisionConfig standard;
  NodeWriter writer;
  writer.always("image_size", config.image_size)
      .always("layers", layers_node(config.layers))
      .always("width", config.width)
      .unless_default("head_width", config.head_width, standard.head_width);
  if (config.is_resnet()) return writer.always("patch_size", ConfigNode{}).take();
  return writer.always("patch_size", config.patch_size)
      .unless_default("mlp_ratio", config.mlp_ratio, standard.mlp_ratio)
      .unless_default("no_ln_pre", config.no_ln_pre, standard.no_ln_pre)
      .unless_default("final_ln_after_pool", config.final_ln_after_pool, standard.final_ln_after_pool)
      .unless_default("pool_type", config.pool_type, standard.pool_type)
      .take();
}

ConfigNode text_node(const TextConfig& config) {
  const TextConfig standard;
  return NodeWriter()
      .always("context_length", config.context_length)
      .always("vocab_size", config.vocab_size)
      .always("width", config.width)
      .always("heads", config.heads)
      .always("layers", config.layers)
      .unless_default("mlp_ratio", config.mlp_ratio, standard.mlp_ratio)
      .unless_default("no_causal_mask", config.no_causal_mask, standard.no_causal_mask)
      .unless_default("pool_type", config.pool_type, standard.pool_type)
      .take();
}

}  // namespace

bool VisionConfig::is_resnet() const {
  return layers.size() == kResnetStages;
}

int64_t VisionConfig::heads() const {
  return output_width() / head_width;
}

int64_t VisionConfig::output_width() const {
  return is_resnet() ? width * kResnetReduction : width;
}

ModelConfig load_model_config(const ConfigNode& node) {
  const auto file = read_options<ModelFile>(node);
  auto config = file.config;
  config.vision_cfg = file.vision_cfg.resolved();
  config.text_cfg = file.text_cfg.config;
  return config;
}

ModelConfig model_config_from_file(const std::filesystem::path& file) {
  return load_model_config(load_config(file));
}

ConfigNode to_node(const ModelConfig& config) {
  const ModelConfig standard;
  return NodeWriter()
      .always("embed_dim", config.embed_dim)
      .unless_default("quick_gelu", config.quick_gelu, standard.quick_gelu)
      .unless_default("init_logit_scale", config.init_logit_scale, standard.init_logit_scale)
      .always("vision_cfg", vision_node(config.vision_cfg))
      .always("text_cfg", text_node(config.text_cfg))
      .take();
}

void validate(const ModelConfig& config) {
  std::vector<std::string> problems;
  const auto report_in = [&](const std::string& parent) {
    return [&problems, parent](const std::string& key, const std::string& message) {
      problems.push_back(parent + key + ": " + message);
    };
  };
  if (config.embed_dim < 1) report_in("")("embed_dim", fmt::format("must be at least 1, but is {}", config.embed_dim));
  check_vision(config.vision_cfg, report_in("vision_cfg."));
  check_text(config.text_cfg, report_in("text_cfg."));
  if (!problems.empty()) throw ConfigError(fmt::format("[model config] {}", fmt::join(problems, "\n")));
}

}  // namespace contrastive::models
