#include "contrastive/models/model_config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"
#include "contrastive/core/options.h"

#include "models/timm_towers.h"

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
constexpr size_t kMaxStages = 8;
constexpr int64_t kResnetReduction = 32;
constexpr int64_t kBottleneckExpansion = 4;

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
  return {{"output_tokens", kFalse},      {"block_type", {"default"}}, {"qk_norm", kFalse},
          {"scaled_cosine_attn", kFalse}, {"scale_heads", kFalse},     {"scale_attn_inner", kFalse},
          {"scale_attn", kFalse},         {"scale_fc", kFalse}};
}

/// act_kwargs: arguments of torch's GELU.
struct ActKwargs {
  std::string approximate = "none";

  template <typename Fields>
  void fields(Fields& f) {
    f("approximate", approximate, one_of({"none", "tanh"}));
  }
};

/// norm_kwargs: arguments of torch's LayerNorm.
struct NormKwargs {
  double eps = 1e-5;

  template <typename Fields>
  void fields(Fields& f) {
    f("eps", eps, greater_than(0));
  }
};

/// tokenizer_kwargs; what else open_clip reads from it changes training captions at random.
struct TokenizerKwargs {
  std::string clean;
  bool strip_sep_token = false;
  std::string policy;

  template <typename Fields>
  void fields(Fields& f) {
    f("clean", clean, one_of({"", "lower", "whitespace", "canonicalize"}));
    f("strip_sep_token", strip_sep_token);
    f("policy", policy, one_of({"", "lit"}));
  }
};

/// timm_model_kwargs: what differs from the name's sizes. timm's own are those up to init_values.
struct TimmKwargs {
  std::optional<int64_t> embed_dim, depth, num_heads, patch_size;
  std::optional<double> mlp_ratio;
  std::optional<std::string> act_layer;
  std::optional<bool> class_token, pre_norm, fc_norm;
  std::optional<double> init_values;
  std::optional<double> norm_eps;
  std::optional<bool> pre_logits;
  std::optional<int64_t> token_mlp_width, stem_width, norm_groups;
  std::optional<double> weight_norm_eps;
  std::optional<std::vector<int64_t>> layers;

  template <typename Fields>
  void fields(Fields& f) {
    f("embed_dim", embed_dim, between(1, kMaxWidth));
    f("depth", depth, between(1, kMaxLayers));
    f("num_heads", num_heads, between(1, kMaxWidth));
    f("patch_size", patch_size, between(1, kMaxImageSize));
    f("mlp_ratio", mlp_ratio, between(0, kMaxMlpRatio));
    f("act_layer", act_layer, one_of({"gelu", "gelu_tanh"}));
    f("class_token", class_token);
    f("pre_norm", pre_norm);
    f("fc_norm", fc_norm);
    f("init_values", init_values);
    f("norm_eps", norm_eps, greater_than(0));
    f("pre_logits", pre_logits);
    f("token_mlp_width", token_mlp_width, between(1, kMaxWidth));
    f("stem_width", stem_width, between(1, kMaxWidth));
    f("norm_groups", norm_groups, between(1, kMaxWidth));
    f("weight_norm_eps", weight_norm_eps, greater_than(0));
    f("layers", layers);
  }

  void apply(VisionConfig& config) const {
    const auto heads = num_heads.value_or(config.heads());
    const auto put = [](const auto& from, auto& to) {
      if (from) to = *from;
    };
    put(embed_dim, config.width);
    put(stem_width, config.width);
    put(layers, config.layers);
    if (depth) config.layers = {*depth};
    config.head_width = std::max<int64_t>(1, config.width / heads);
    put(patch_size, config.patch_size);
    put(mlp_ratio, config.mlp_ratio);
    if (act_layer) config.gelu_tanh = *act_layer == "gelu_tanh";
    put(class_token, config.class_token);
    put(pre_norm, config.pre_norm);
    put(fc_norm, config.final_ln_after_pool);
    if (init_values) config.ls_init_value = *init_values;
    put(norm_eps, config.norm_eps);
    put(pre_logits, config.pre_logits);
    put(token_mlp_width, config.token_mlp_width);
    put(norm_groups, config.norm_groups);
    put(weight_norm_eps, config.weight_norm_eps);
  }
};

/// hf_model_config: what differs from the name's sizes; keys of transformers' BertConfig.
struct BertKwargs {
  std::optional<int64_t> hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, vocab_size,
      max_position_embeddings, type_vocab_size, pad_token_id;
  std::optional<double> layer_norm_eps;
  std::optional<std::string> hidden_act;

  template <typename Fields>
  void fields(Fields& f) {
    f("hidden_size", hidden_size, between(1, kMaxWidth));
    f("num_hidden_layers", num_hidden_layers, between(1, kMaxLayers));
    f("num_attention_heads", num_attention_heads, between(1, kMaxWidth));
    f("intermediate_size", intermediate_size, between(1, kMaxWidth));
    f("vocab_size", vocab_size, between(1, kMaxVocabulary));
    f("max_position_embeddings", max_position_embeddings, between(1, kMaxContext));
    f("type_vocab_size", type_vocab_size, between(1, kMaxWidth));
    f("pad_token_id", pad_token_id, between(0, kMaxVocabulary));
    f("layer_norm_eps", layer_norm_eps, greater_than(0));
    f("hidden_act", hidden_act, one_of({"gelu", "gelu_new", "gelu_pytorch_tanh"}));
  }

  void apply(TextConfig& config) const {
    config.width = hidden_size.value_or(config.width);
    config.layers = num_hidden_layers.value_or(config.layers);
    config.heads = num_attention_heads.value_or(config.heads);
    config.vocab_size = vocab_size.value_or(config.vocab_size);
    config.max_positions = max_position_embeddings.value_or(config.max_positions);
    config.token_types = type_vocab_size.value_or(config.token_types);
    config.pad_id = pad_token_id.value_or(config.pad_id);
    config.norm_eps = layer_norm_eps.value_or(config.norm_eps);
    if (intermediate_size) {
      config.mlp_ratio = static_cast<double>(*intermediate_size) / static_cast<double>(config.width);
    }
    if (hidden_act) config.gelu_tanh = *hidden_act != "gelu";
  }
};

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
  const bool is_bit = config.family() == TimmFamily::resnetv2;
  const bool count_fits =
      config.layers.size() == 1 || (!config.is_timm() && config.layers.size() == kResnetStages) || is_bit;
  if (count_fits && !config.layers.empty() && config.layers.size() <= kMaxStages &&
      std::all_of(config.layers.begin(), config.layers.end(), in_range))
    return;
  report("layers", "expected the number of layers, or a list of 4 (blocks of a ResNet's stages), each at least 1");
}

/// timm's default, as open_clip makes its towers: a ViT made for mean pooling has its norm behind that; one that was
/// made with a class token, as all with a projection are, keeps it before.
bool has_fc_norm_by_default(const VisionConfig& config) {
  return config.family() == TimmFamily::vit && config.pool_type == "avg" && config.proj_type == "none";
}

void check_mlp(int64_t width, double mlp_ratio, const Report& report) {
  if (static_cast<double>(width) * mlp_ratio >= 1) return;
  report("mlp_ratio", fmt::format("leaves no hidden channel at width {}", width));
}

void check_vit(const VisionConfig& config, const Report& report) {
  if (config.width % config.head_width != 0) {
    report("head_width", fmt::format("{} doesn't divide the width {}", config.head_width, config.width));
  }
  if (config.image_size < config.patch_size) {
    report("patch_size", fmt::format("{} is more than the image_size {}", config.patch_size, config.image_size));
  } else if (config.image_size % config.patch_size != 0 && config.pool_type != "map") {
    report("patch_size", fmt::format("{} doesn't divide the image_size {}", config.patch_size, config.image_size));
  }
  if (config.is_timm() && config.pool_type == "tok" && !config.class_token) {
    report("pool_type", "tok needs a class token");
  }
  check_mlp(config.width, config.mlp_ratio, report);
}

void check_mixer(const VisionConfig& config, const Report& report) {
  if (config.image_size % config.patch_size != 0) {
    report("patch_size", fmt::format("{} doesn't divide the image_size {}", config.patch_size, config.image_size));
  }
  if (config.token_mlp_width < 1) report("token_mlp_width", "must be at least 1");
  check_mlp(config.width, config.mlp_ratio, report);
}

void check_bit(const VisionConfig& config, const Report& report) {
  if (config.width % config.norm_groups != 0) {
    report("norm_groups", fmt::format("{} doesn't divide the stem's width {}", config.norm_groups, config.width));
  }
}

/// What only CLIP's own ViT or timm's has.
void check_no_vit_options(const VisionConfig& config, const Report& report) {
  if (config.pool_type == "avg" && !config.pre_norm && !config.pre_logits && !config.final_ln_after_pool &&
      !config.ls_init_value && config.patch_dropout == 0) {
    return;
  }
  report("timm_model_name",
         "a BiT or Mixer is pooled by the mean (timm_pool: avg) and has no pre_norm, pre_logits, "
         "fc_norm, init_values or patch_dropout");
}

void check_timm(const VisionConfig& config, const Report& report) {
  if (config.family() == TimmFamily::vit) return check_vit(config, report);
  check_no_vit_options(config, report);
  config.family() == TimmFamily::mixer ? check_mixer(config, report) : check_bit(config, report);
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
  if (config.no_ln_pre || config.final_ln_after_pool || config.pool_type != "tok" || config.ls_init_value ||
      config.patch_dropout != 0) {
    report("layers", "a ResNet has no no_ln_pre, final_ln_after_pool, pool_type, ls_init_value or patch_dropout");
  }
}

void check_vision(const VisionConfig& config, const Report& report) {
  check_layers(config, report);
  if (config.width < 1 || config.head_width < 1 || config.patch_size < 1 || config.image_size < 1) {
    return report("width", "width, head_width, patch_size and image_size must be at least 1");
  }
  const bool is_map = config.is_timm() && config.pool_type == "map";
  if (config.pool_type != "tok" && config.pool_type != "avg" && !is_map) {
    report("pool_type", fmt::format("expected tok or avg, found {}", config.pool_type));
  }
  if (config.proj_type != "linear" && config.proj_type != "none") {
    report("timm_proj", fmt::format("expected linear or none, found {}", config.proj_type));
  }
  if (config.is_timm()) return check_timm(config, report);
  config.is_resnet() ? check_resnet(config, report) : check_vit(config, report);
}

void check_text(const TextConfig& config, const Report& report) {
  if (config.width < 1 || config.heads < 1 || config.layers < 1 || config.context_length < 1 || config.vocab_size < 1) {
    return report("width", "width, heads, layers, context_length and vocab_size must be at least 1");
  }
  if (config.width % config.heads != 0) {
    report("heads", fmt::format("{} don't divide the width {}", config.heads, config.width));
  }
  static const std::vector<std::string> pools{"argmax", "first", "last", "eos", "map"};
  if (std::find(pools.begin(), pools.end(), config.pool_type) == pools.end()) {
    report("pool_type", fmt::format("expected {}, found {}", fmt::join(pools, ", "), config.pool_type));
  }
  if (config.pool_type == "eos" && !config.eos_id) report("eos_id", "pool_type eos needs the id it pools at");
  if (config.proj_type != "linear" && config.proj_type != "none") {
    report("proj_type", fmt::format("expected linear or none, found {}", config.proj_type));
  }
  if (config.is_bert() && config.context_length > config.max_positions) {
    report("context_length", fmt::format("{} is more than BERT's max_position_embeddings {}", config.context_length,
                                         config.max_positions));
  }
  if (config.is_bert() && config.pool_type != "first") report("pool_type", "a BERT is pooled at the first position");
  check_mlp(config.width, config.mlp_ratio, report);
}

void check_embed_dim(const ModelConfig& config, const Report& report) {
  const auto& vision = config.vision_cfg;
  const auto& text = config.text_cfg;
  if (text.proj_type == "none" && text.width != config.embed_dim) {
    report("embed_dim",
           fmt::format("must be the text's width {} with proj_type none, but is {}", text.width, config.embed_dim));
  }
  if (!vision.has_projection() && vision.output_width() != config.embed_dim) {
    report("embed_dim", fmt::format("must be the image tower's width {} with timm_proj none, but is {}",
                                    vision.output_width(), config.embed_dim));
  }
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
  std::optional<ActKwargs> act_kwargs;
  std::optional<NormKwargs> norm_kwargs;
  std::optional<std::string> timm_model_name;
  std::optional<TimmKwargs> timm_model_kwargs;
  std::string timm_pool = "avg";
  std::string timm_proj = "linear";
  bool timm_proj_bias = false;
  std::vector<SwitchedOff> off = with_custom_block_fields({{"image_seq_len", kNullOnly},
                                                           {"attentional_pool", kFalse},
                                                           {"attn_pooler_queries"},
                                                           {"attn_pooler_heads"},
                                                           {"pos_embed_type", {"learnable"}},
                                                           {"timm_model_pretrained"},
                                                           {"timm_drop", kZero},
                                                           {"timm_drop_path", kZero}});

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
    f("ls_init_value", config.ls_init_value);
    f("patch_dropout", config.patch_dropout, between(0, 0.999));
    f("act_kwargs", act_kwargs);
    f("norm_kwargs", norm_kwargs);
    f("timm_model_name", timm_model_name);
    f("timm_model_kwargs", timm_model_kwargs);
    f("timm_pool", timm_pool, one_of({"", "token", "tok", "avg", "map"}));
    f("timm_proj", timm_proj, one_of({"linear", "none"}));
    f("timm_proj_bias", timm_proj_bias);
    for (auto& field : off) f(field.key, field.value);
  }

  void validate(const OptionScope& scope) const {
    report_unsupported(off, scope);
    check_image_size(scope);
    if (timm_model_name && !check_timm_name(scope)) return;
    if (as_integers(layers)) {
      check_vision(resolved(), report_to(scope));
    } else {
      scope.fail("layers", "expected the number of layers, or a list of 4");
    }
    if (!patch_size && layers.kind != ConfigNode::Kind::sequence) scope.fail("patch_size", "a ViT needs one");
  }

  /// Whether the rest can be looked at.
  bool check_timm_name(const OptionScope& scope) const {
    if (detail::timm_defaults(*timm_model_name)) return true;
    scope.fail("timm_model_name", fmt::format("'{}' is not supported by this version (only {})", *timm_model_name,
                                              detail::known_timm_names()));
    return false;
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
    auto result = timm_model_name ? resolved_timm() : resolved_own();
    const auto sizes = as_integers(image_size);
    if (sizes && !sizes->empty()) result.image_size = sizes->front();
    return result;
  }

  VisionConfig resolved_timm() const {
    auto result = *detail::timm_defaults(*timm_model_name);
    result.patch_dropout = config.patch_dropout;
    if (!timm_pool.empty()) result.pool_type = timm_pool == "token" ? "tok" : timm_pool;
    result.proj_type = timm_proj;
    result.proj_bias = timm_proj_bias;
    result.final_ln_after_pool = has_fc_norm_by_default(result);
    if (timm_model_kwargs) timm_model_kwargs->apply(result);
    return result;
  }

  VisionConfig resolved_own() const {
    auto result = config;
    result.layers = as_integers(layers).value_or(result.layers);
    result.patch_size = patch_size.value_or(result.patch_size);
    if (act_kwargs) result.gelu_tanh = act_kwargs->approximate == "tanh";
    if (norm_kwargs) result.norm_eps = norm_kwargs->eps;
    return result;
  }
};

/// text_cfg as it stands in a file.
struct TextFile {
  TextConfig config;
  bool final_ln_after_pool = false;  ///< open_clip accepts it for text, too, without an effect
  std::optional<ActKwargs> act_kwargs;
  std::optional<NormKwargs> norm_kwargs;
  std::optional<std::string> hf_tokenizer_name;
  std::optional<TokenizerKwargs> tokenizer_kwargs;
  std::optional<std::string> hf_model_name;
  ConfigNode hf_proj_type = ConfigNode::make_scalar("mlp");  ///< null: none
  std::optional<std::string> hf_pooler_type;
  std::optional<BertKwargs> hf_model_config;
  std::vector<SwitchedOff> off = with_custom_block_fields({{"text_arch", {"clip"}},
                                                           {"variable_text", kFalse},
                                                           {"tokenizer_mode", kNullOnly},
                                                           {"tokenizer_type", {""}},
                                                           {"tiktoken_name", kNullOnly},
                                                           {"embed_cls", kFalse},
                                                           {"pad_id"},
                                                           {"bos_id"},
                                                           {"hf_model_pretrained"}});

  template <typename Fields>
  void fields(Fields& f) {
    f("context_length", config.context_length, between(1, kMaxContext));
    f("vocab_size", config.vocab_size, between(1, kMaxVocabulary));
    f("width", config.width, between(1, kMaxWidth));
    f("heads", config.heads, between(1, kMaxWidth));
    f("layers", config.layers, between(1, kMaxLayers));
    f("mlp_ratio", config.mlp_ratio, between(0, kMaxMlpRatio));
    f("no_causal_mask", config.no_causal_mask);
    f("pool_type", config.pool_type, one_of({"argmax", "first", "last", "eos", "map"}));
    f("eos_id", config.eos_id, between(0, kMaxVocabulary));
    f("proj_type", config.proj_type, one_of({"linear", "none"}));
    f("proj_bias", config.proj_bias);
    f("ls_init_value", config.ls_init_value);
    f("act_kwargs", act_kwargs);
    f("norm_kwargs", norm_kwargs);
    f("hf_tokenizer_name", hf_tokenizer_name);
    f("tokenizer_kwargs", tokenizer_kwargs);
    f("final_ln_after_pool", final_ln_after_pool);
    f("hf_model_name", hf_model_name);
    f("hf_proj_type", hf_proj_type);
    f("hf_pooler_type", hf_pooler_type);
    f("hf_model_config", hf_model_config);
    for (auto& field : off) f(field.key, field.value);
  }

  void validate(const OptionScope& scope) const {
    report_unsupported(off, scope);
    if (hf_model_name && !check_bert(scope)) return;
    check_text(resolved(), report_to(scope));
  }

  /// Whether the rest can be looked at.
  bool check_bert(const OptionScope& scope) const {
    if (!detail::bert_defaults(*hf_model_name)) {
      scope.fail("hf_model_name", fmt::format("'{}' is not supported by this version (only {})", *hf_model_name,
                                              detail::known_bert_names()));
      return false;
    }
    const auto proj = bert_projection(), pooler = hf_pooler_type.value_or("mean_pooler");  // open_clip's default
    if (proj != "linear" && proj != "none") {
      scope.fail("hf_proj_type", fmt::format("expected linear or none, found {}", proj));
    }
    if (pooler != "cls_last_hidden_state_pooler") {
      scope.fail("hf_pooler_type", fmt::format("expected cls_last_hidden_state_pooler, found {}", pooler));
    }
    return true;
  }

  TextConfig resolved() const {
    auto result = hf_model_name ? resolved_bert() : config;
    if (act_kwargs) result.gelu_tanh = act_kwargs->approximate == "tanh";
    if (norm_kwargs) result.norm_eps = norm_kwargs->eps;
    result.hf_tokenizer_name = hf_tokenizer_name.value_or(result.hf_model_name);
    if (tokenizer_kwargs) {
      result.tokenizer_clean = tokenizer_kwargs->clean;
      result.tokenizer_strip_sep = tokenizer_kwargs->strip_sep_token;
      result.tokenizer_policy = tokenizer_kwargs->policy;
    }
    return result;
  }

  std::string bert_projection() const {
    return hf_proj_type.kind == ConfigNode::Kind::null ? "none" : hf_proj_type.scalar;
  }

  TextConfig resolved_bert() const {
    auto result = *detail::bert_defaults(*hf_model_name);
    if (hf_model_config) hf_model_config->apply(result);
    result.context_length = config.context_length;
    result.proj_type = bert_projection();
    result.proj_bias = config.proj_bias;
    return result;
  }
};

/// A whole model JSON.
struct ModelFile {
  ModelConfig config;
  VisionFile vision_cfg;
  TextFile text_cfg;
  std::vector<SwitchedOff> off = {{"nonscalar_logit_scale", kFalse},
                                  {"multimodal_cfg", kNullOnly},
                                  {"audio_cfg", kNullOnly},
                                  {"genlip_cfg", kNullOnly},
                                  {"genlap_cfg", kNullOnly}};

  template <typename Fields>
  void fields(Fields& f) {
    auto embed_dim_check = between(1, kMaxWidth);
    embed_dim_check.required = true;
    f("embed_dim", config.embed_dim, embed_dim_check);
    f("quick_gelu", config.quick_gelu);
    f("init_logit_scale", config.init_logit_scale, between(-10, 10));
    f("init_logit_bias", config.init_logit_bias, between(-1000, 1000));
    f("custom_text", config.custom_text);
    f("checkpoint_activations", config.checkpoint_activations);
    f("vision_cfg", vision_cfg, required());
    f("text_cfg", text_cfg, required());
    for (auto& field : off) f(field.key, field.value);
  }

  void validate(const OptionScope& scope) const {
    report_unsupported(off, scope);
    if (scope_has_errors()) return;
    check_embed_dim(resolved(), report_to(scope));
  }

  /// Names that aren't known are reported elsewhere; there is nothing to compare then.
  bool scope_has_errors() const {
    return (vision_cfg.timm_model_name && !detail::timm_defaults(*vision_cfg.timm_model_name)) ||
           (text_cfg.hf_model_name && !detail::bert_defaults(*text_cfg.hf_model_name));
  }

  ModelConfig resolved() const {
    auto result = config;
    result.vision_cfg = vision_cfg.resolved();
    result.text_cfg = text_cfg.resolved();
    // Towers of other libraries have text parameters that are named `text.`.
    result.custom_text = config.custom_text || result.text_cfg.is_bert();
    return result;
  }
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
  template <typename T>
  NodeWriter& unless_default(const char* key, const std::optional<T>& value) {
    return value ? always(key, *value) : *this;
  }
  NodeWriter& when(bool condition, const char* key, ConfigNode value) {
    return condition ? always(key, std::move(value)) : *this;
  }
  ConfigNode take() { return std::move(node_); }

 private:
  ConfigNode node_ = ConfigNode::make_map();
};

ConfigNode layers_node(const std::vector<int64_t>& layers, bool always_list = false) {
  if (layers.size() == 1 && !always_list) return ConfigNode::make_scalar(text_of(layers.front()));
  std::vector<ConfigNode> items;
  for (const auto count : layers) items.push_back(ConfigNode::make_scalar(text_of(count)));
  return ConfigNode::make_sequence(std::move(items));
}

ConfigNode one_entry(const char* key, ConfigNode value) {
  auto node = ConfigNode::make_map();
  node.add(key, std::move(value));
  return node;
}

ConfigNode tanh_kwargs() {
  return one_entry("approximate", ConfigNode::make_scalar("tanh"));
}

ConfigNode timm_kwargs_node(const VisionConfig& config) {
  const auto standard = *detail::timm_defaults(config.timm_model_name);
  const auto activation = [](const VisionConfig& vision) {
    return std::string(vision.gelu_tanh ? "gelu_tanh" : "gelu");
  };
  const bool is_bit = config.family() == TimmFamily::resnetv2;
  NodeWriter writer;
  writer.unless_default(is_bit ? "stem_width" : "embed_dim", config.width, standard.width)
      .when(config.layers != standard.layers, is_bit ? "layers" : "depth", layers_node(config.layers, is_bit));
  if (config.family() == TimmFamily::vit) writer.unless_default("num_heads", config.heads(), standard.heads());
  return writer.unless_default("patch_size", config.patch_size, standard.patch_size)
      .unless_default("mlp_ratio", config.mlp_ratio, standard.mlp_ratio)
      .unless_default("act_layer", activation(config), activation(standard))
      .unless_default("class_token", config.class_token, standard.class_token)
      .unless_default("pre_norm", config.pre_norm, standard.pre_norm)
      .unless_default("fc_norm", config.final_ln_after_pool, has_fc_norm_by_default(config))
      .unless_default("init_values", config.ls_init_value)
      .unless_default("norm_eps", config.norm_eps, standard.norm_eps)
      .unless_default("pre_logits", config.pre_logits, standard.pre_logits)
      .unless_default("token_mlp_width", config.token_mlp_width, standard.token_mlp_width)
      .unless_default("norm_groups", config.norm_groups, standard.norm_groups)
      .unless_default("weight_norm_eps", config.weight_norm_eps, standard.weight_norm_eps)
      .take();
}

ConfigNode timm_node(const VisionConfig& config) {
  NodeWriter writer;
  writer.always("image_size", config.image_size)
      .always("timm_model_name", ConfigNode::make_scalar(config.timm_model_name, /*quoted=*/true))
      .always("timm_model_pretrained", false)
      .always("timm_pool", ConfigNode::make_scalar(config.pool_type == "tok" ? "token" : config.pool_type))
      .always("timm_proj", ConfigNode::make_scalar(config.proj_type))
      .unless_default("timm_proj_bias", config.proj_bias, false)
      .unless_default("patch_dropout", config.patch_dropout, 0.0);
  auto kwargs = timm_kwargs_node(config);
  if (!kwargs.entries.empty()) writer.always("timm_model_kwargs", std::move(kwargs));
  return writer.take();
}

ConfigNode vision_node(const VisionConfig& config) {
  if (config.is_timm()) return timm_node(config);
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
      .unless_default("ls_init_value", config.ls_init_value)
      .unless_default("patch_dropout", config.patch_dropout, standard.patch_dropout)
      .when(config.gelu_tanh, "act_kwargs", tanh_kwargs())
      .when(config.norm_eps != standard.norm_eps, "norm_kwargs",
            one_entry("eps", ConfigNode::make_scalar(text_of(config.norm_eps))))
      .take();
}

ConfigNode tokenizer_kwargs_node(const TextConfig& config) {
  return NodeWriter()
      .unless_default("clean", config.tokenizer_clean, std::string())
      .unless_default("strip_sep_token", config.tokenizer_strip_sep, false)
      .unless_default("policy", config.tokenizer_policy, std::string())
      .take();
}

bool has_tokenizer_kwargs(const TextConfig& config) {
  return !config.tokenizer_clean.empty() || config.tokenizer_strip_sep || !config.tokenizer_policy.empty();
}

ConfigNode bert_kwargs_node(const TextConfig& config) {
  const auto standard = *detail::bert_defaults(config.hf_model_name);
  const auto hidden_width = [](const TextConfig& text) {
    return static_cast<int64_t>(std::llround(static_cast<double>(text.width) * text.mlp_ratio));
  };
  const auto activation = [](const TextConfig& text) { return std::string(text.gelu_tanh ? "gelu_new" : "gelu"); };
  return NodeWriter()
      .unless_default("hidden_size", config.width, standard.width)
      .unless_default("num_hidden_layers", config.layers, standard.layers)
      .unless_default("num_attention_heads", config.heads, standard.heads)
      .unless_default("intermediate_size", hidden_width(config), hidden_width(standard))
      .unless_default("vocab_size", config.vocab_size, standard.vocab_size)
      .unless_default("max_position_embeddings", config.max_positions, standard.max_positions)
      .unless_default("type_vocab_size", config.token_types, standard.token_types)
      .unless_default("pad_token_id", config.pad_id, standard.pad_id)
      .unless_default("layer_norm_eps", config.norm_eps, standard.norm_eps)
      .unless_default("hidden_act", activation(config), activation(standard))
      .take();
}

ConfigNode bert_node(const TextConfig& config) {
  const auto text = [](const std::string& value) { return ConfigNode::make_scalar(value, /*quoted=*/true); };
  auto kwargs = bert_kwargs_node(config);
  const bool has_kwargs = !kwargs.entries.empty();
  return NodeWriter()
      .always("context_length", config.context_length)
      .always("hf_model_name", text(config.hf_model_name))
      .always("hf_tokenizer_name", text(config.hf_tokenizer_name))
      .always("hf_proj_type", config.proj_type == "none" ? ConfigNode{} : text(config.proj_type))
      .always("hf_pooler_type", text("cls_last_hidden_state_pooler"))
      .unless_default("proj_bias", config.proj_bias, false)
      .when(has_kwargs, "hf_model_config", std::move(kwargs))
      .when(has_tokenizer_kwargs(config), "tokenizer_kwargs", tokenizer_kwargs_node(config))
      .take();
}

ConfigNode text_node(const TextConfig& config) {
  if (config.is_bert()) return bert_node(config);
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
      .unless_default("eos_id", config.eos_id)
      .unless_default("proj_type", config.proj_type, standard.proj_type)
      .unless_default("proj_bias", config.proj_bias, standard.proj_bias)
      .unless_default("ls_init_value", config.ls_init_value)
      .when(config.gelu_tanh, "act_kwargs", tanh_kwargs())
      .when(config.norm_eps != standard.norm_eps, "norm_kwargs",
            one_entry("eps", ConfigNode::make_scalar(text_of(config.norm_eps))))
      .unless_default("hf_tokenizer_name", config.hf_tokenizer_name, standard.hf_tokenizer_name)
      .when(has_tokenizer_kwargs(config), "tokenizer_kwargs", tokenizer_kwargs_node(config))
      .take();
}

}  // namespace

bool VisionConfig::is_resnet() const {
  return !is_timm() && layers.size() == kResnetStages;
}

int64_t VisionConfig::heads() const {
  return output_width() / head_width;
}

int64_t VisionConfig::output_width() const {
  if (family() == TimmFamily::resnetv2) return (width * kBottleneckExpansion) << (layers.size() - 1);
  return is_resnet() ? width * kResnetReduction : width;
}

ModelConfig load_model_config(const ConfigNode& node) {
  return read_options<ModelFile>(node).resolved();
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
      .unless_default("init_logit_bias", config.init_logit_bias)
      .unless_default("custom_text", config.custom_text, standard.custom_text)
      .always("vision_cfg", vision_node(config.vision_cfg))
      .always("text_cfg", text_node(config.text_cfg))
      .take();
}

ConfigNode to_full_node(const ModelConfig& config) {
  auto node = to_node(config);
  if (config.checkpoint_activations) node.add("checkpoint_activations", ConfigNode::make_scalar("true"));
  return node;
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
  if (problems.empty()) check_embed_dim(config, report_in(""));
  if (!problems.empty()) throw ConfigError(fmt::format("[model config] {}", fmt::join(problems, "\n")));
}

}  // namespace contrastive::models
