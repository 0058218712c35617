#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "contrastive/core/options.h"
#include "contrastive/models/model_config.h"

#include "models/model_config_checks.h"
#include "models/timm_towers.h"

namespace contrastive::models {
namespace {

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
      .unless_default("fc_norm", config.final_ln_after_pool, detail::has_fc_norm_by_default(config))
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

}  // namespace contrastive::models
