#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "contrastive/core/error.h"

#include "models/timm_names.h"
#include "models/timm_towers.h"
#include "models/tower_readers.h"

namespace contrastive::models {
namespace detail {
namespace {

using Tensors = std::vector<LazyTensor>;
using Wanted = std::vector<WantedTensor>;

constexpr int64_t kHeadWidth = 64;
/// Of what LiT's text towers read.
constexpr int64_t kLitContextLength = 16;
constexpr const char* kWordTable = "embeddings.word_embeddings.weight";

int64_t hidden_width(const TextConfig& config) {
  return static_cast<int64_t>(static_cast<double>(config.width) * config.mlp_ratio + 1e-6);
}

void append_linear(const std::string& name, int64_t out, int64_t in, Wanted& wanted) {
  wanted.push_back({name + ".weight", {out, in}});
  wanted.push_back({name + ".bias", {out}});
}

void append_norm(const std::string& name, int64_t width, Wanted& wanted) {
  wanted.push_back({name + ".weight", {width}});
  wanted.push_back({name + ".bias", {width}});
}

/// Without the `bert.` of models for pre-training, and with PyTorch's names of the norms' tensors, not TensorFlow's.
Tensors with_plain_names(Tensors tensors) {
  static const NameParts kParts = {{"LayerNorm.gamma", "LayerNorm.weight"}, {"LayerNorm.beta", "LayerNorm.bias"}};
  constexpr std::string_view kPrefix = "bert.";
  for (auto& tensor : tensors) {
    if (tensor.name.starts_with(kPrefix)) tensor.name.erase(0, kPrefix.size());
    tensor.name = replace_parts(tensor.name, kParts);
  }
  return tensors;
}

TextConfig infer_bert(const TensorSet& set, const TextTowerOptions& options) {
  TextConfig config;
  config.vocab_size = set.size(kWordTable, 0, 2);
  config.width = set.size(kWordTable, 1, 2);
  config.max_positions = set.size("embeddings.position_embeddings.weight", 0, 2);
  config.token_types = set.size("embeddings.token_type_embeddings.weight", 0, 2);
  config.layers = set.count("encoder.layer.", ".");
  config.mlp_ratio = mlp_ratio_of(config.width, set.size("encoder.layer.0.intermediate.dense.weight", 0, 2));
  config.heads = options.heads;
  name_bert(config);
  return config;
}

}  // namespace

void name_bert(TextConfig& config) {
  if (config.heads <= 0) config.heads = std::max<int64_t>(1, config.width / kHeadWidth);
  if (config.width % config.heads != 0) {
    throw CheckpointError(fmt::format("[BERT] its width {} can't be shared by {} heads", config.width, config.heads));
  }
  const std::string base = "bert-base-uncased", large = "bert-large-uncased";
  const auto known = bert_defaults(large);
  const bool is_large = known && known->width == config.width && known->layers == config.layers &&
                        known->heads == config.heads && known->vocab_size == config.vocab_size;
  config.hf_model_name = is_large ? large : base;
  config.hf_tokenizer_name = config.hf_model_name;
  config.no_causal_mask = true;
  config.pool_type = "first";
  config.norm_eps = kBertNormEps;
  config.context_length = std::min(kLitContextLength, config.max_positions);
}

Wanted bert_tensors(const TextConfig& config) {
  const auto width = config.width;
  const std::string embeddings = "transformer.embeddings.";
  Wanted wanted{{embeddings + "word_embeddings.weight", {config.vocab_size, width}},
                {embeddings + "position_embeddings.weight", {config.max_positions, width}},
                {embeddings + "token_type_embeddings.weight", {config.token_types, width}}};
  append_norm(embeddings + "LayerNorm", width, wanted);
  for (int64_t i = 0; i < config.layers; ++i) {
    const auto layer = fmt::format("transformer.encoder.layer.{}.", i);
    for (const auto* part : {"query", "key", "value"}) {
      append_linear(layer + "attention.self." + part, width, width, wanted);
    }
    append_linear(layer + "attention.output.dense", width, width, wanted);
    append_norm(layer + "attention.output.LayerNorm", width, wanted);
    append_linear(layer + "intermediate.dense", hidden_width(config), width, wanted);
    append_linear(layer + "output.dense", width, hidden_width(config), wanted);
    append_norm(layer + "output.LayerNorm", width, wanted);
  }
  return wanted;
}

bool is_hf_bert(const Tensors& tensors) {
  return std::any_of(tensors.begin(), tensors.end(), [](const auto& tensor) {
    return tensor.name == kWordTable || tensor.name == std::string("bert.") + kWordTable;
  });
}

TextTowerWeights read_hf_bert(Tensors tensors, const TextTowerOptions& options) {
  TextTowerWeights tower;
  tower.format = "BERT (transformers)";
  TensorSet set(tower.format, with_plain_names(std::move(tensors)));
  for (const auto* left_out : {"pooler.", "cls.", "embeddings.position_ids", "embeddings.token_type_ids"}) {
    set.drop(left_out);
  }
  tower.config = infer_bert(set, options);
  tower.config.proj_type = "none";
  tower.embed_dim = tower.config.width;
  const std::string prefix = "transformer.";
  for (const auto& [name, shape] : bert_tensors(tower.config)) {
    tower.tensors.push_back(renamed(set.take(name.substr(prefix.size()), shape), name));
  }
  set.finish();
  return tower;
}

}  // namespace detail

namespace {

[[noreturn]] void fail(const ConfigNode& node, const std::string& key, const std::string& message) {
  throw ConfigError(fmt::format("{}: {}: {}", node.place.to_string(), key, message));
}

/// The scalar at a key; nothing if it is missing or null.
std::optional<std::string> text_at(const ConfigNode& config, const std::string& key) {
  const auto* node = config.find(key);
  if (node == nullptr || node->kind == ConfigNode::Kind::null) return std::nullopt;
  if (node->kind != ConfigNode::Kind::scalar) fail(*node, key, "must be one value");
  return node->scalar;
}

template <typename Number>
Number number_at(const ConfigNode& config, const std::string& key, Number otherwise) {
  const auto text = text_at(config, key);
  if (!text) return otherwise;
  Number value{};
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (error != std::errc() || end != text->data() + text->size()) {
    fail(*config.find(key), key, fmt::format("must be a number, but is '{}'", *text));
  }
  return value;
}

void refuse_other_values(const ConfigNode& config, const std::string& key, const std::string& supported) {
  const auto text = text_at(config, key);
  if (text && *text != supported) {
    fail(*config.find(key), key, fmt::format("only {} is supported, but is '{}'", supported, *text));
  }
}

/// Whether the activation is the GELU's approximation by tanh.
bool is_tanh_gelu(const ConfigNode& config) {
  const auto name = text_at(config, "hidden_act").value_or("gelu");
  if (name == "gelu_new" || name == "gelu_pytorch_tanh" || name == "gelu_fast") return true;
  if (name != "gelu") fail(*config.find("hidden_act"), "hidden_act", fmt::format("'{}' is not supported", name));
  return false;
}

/// Defaults are those of transformers' BertConfig, which leaves them out of the file.
void check_sizes(const ConfigNode& config, const TextTowerWeights& tower) {
  const auto& text = tower.config;
  const std::vector<std::tuple<std::string, int64_t, int64_t>> sizes{
      {"vocab_size", 30522, text.vocab_size},
      {"hidden_size", 768, text.width},
      {"num_hidden_layers", 12, text.layers},
      {"intermediate_size", 3072, static_cast<int64_t>(static_cast<double>(text.width) * text.mlp_ratio + 1e-6)},
      {"max_position_embeddings", 512, text.max_positions},
      {"type_vocab_size", 2, text.token_types}};
  for (const auto& [key, otherwise, found] : sizes) {
    const auto said = number_at<int64_t>(config, key, otherwise);
    if (said == found) continue;
    throw CheckpointError(
        fmt::format("[{}] the config says {} = {}, the weights have {}", tower.format, key, said, found));
  }
}

}  // namespace

TextTowerWeights text_tower_from_bert_config(const ConfigNode& config, std::vector<LazyTensor> tensors) {
  const auto type = text_at(config, "model_type").value_or("");
  if (type != "bert") {
    throw ConfigError(fmt::format("{}: model_type: only bert is supported, but is '{}'", config.place.source, type));
  }
  refuse_other_values(config, "position_embedding_type", "absolute");
  refuse_other_values(config, "is_decoder", "false");
  refuse_other_values(config, "add_cross_attention", "false");
  constexpr int64_t kHeads = 12;
  const auto heads = number_at<int64_t>(config, "num_attention_heads", kHeads);
  if (heads < 1) fail(*config.find("num_attention_heads"), "num_attention_heads", "must be at least 1");
  auto tower = detail::read_hf_bert(std::move(tensors), {.heads = heads});
  check_sizes(config, tower);
  tower.config.gelu_tanh = is_tanh_gelu(config);
  tower.config.norm_eps = number_at<double>(config, "layer_norm_eps", detail::kBertNormEps);
  tower.config.pad_id = number_at<int64_t>(config, "pad_token_id", 0);
  return tower;
}

}  // namespace contrastive::models
