#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"
#include "contrastive/core/options.h"
#include "contrastive/models/model_config.h"

#include "models/model_config_checks.h"
#include "models/timm_towers.h"

namespace contrastive::models {
namespace {

using namespace detail;

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

}  // namespace

ModelConfig load_model_config(const ConfigNode& node) {
  return read_options<ModelFile>(node).resolved();
}

ModelConfig model_config_from_file(const std::filesystem::path& file) {
  return load_model_config(load_config(file));
}

}  // namespace contrastive::models
