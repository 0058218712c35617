#include "contrastive/train/run_options.h"

#include <algorithm>
#include <map>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/eval/checkpoint_source.h"
#include "contrastive/eval/preprocess_config.h"
#include "contrastive/models/model_config.h"

namespace contrastive::train {
namespace {

namespace fs = std::filesystem;

fs::path find_run_config(const std::string& file) {
  if (fs::is_regular_file(file)) return file;
  const bool is_name = fs::path(file).filename() == file;
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(find_resource("configs"))) {
    if (entry.path().extension() != ".yaml") continue;
    names.push_back(entry.path().filename().string());
    if (is_name && names.back() == file) return entry.path();
  }
  std::sort(names.begin(), names.end());
  const auto suggestion = is_name ? nearest_word(file, names) : "";
  throw ConfigError(fmt::format("config '{}' is neither a file nor a shipped config{}; shipped: {}", file,
                                suggestion.empty() ? "" : fmt::format(" (did you mean {}?)", suggestion),
                                fmt::join(names, ", ")));
}

/// {name: NAME}, which other keys may join.
ConfigNode named_model(const ConfigNode& name) {
  auto map = ConfigNode::make_map();
  map.place = name.place;
  map.add("name", name);
  return map;
}

/// An override of a key of `model` may also meet a name there.
void apply_run_override(ConfigNode& document, const std::string& text) {
  for (auto& [key, place, value] : document.entries) {
    const bool is_name = key == "model" && value.kind == ConfigNode::Kind::scalar;
    if (is_name && text.starts_with("model.")) value = named_model(value);
  }
  apply_override(document, text);
}

/// Puts the values of one map into another, key by key where both have maps.
void merge(ConfigNode& base, const ConfigNode& changes) {
  for (const auto& entry : changes.entries) {
    const auto found =
        std::find_if(base.entries.begin(), base.entries.end(), [&](const auto& each) { return each.key == entry.key; });
    if (found == base.entries.end()) {
      base.entries.push_back(entry);
    } else if (found->value.kind == ConfigNode::Kind::map && entry.value.kind == ConfigNode::Kind::map) {
      merge(found->value, entry.value);
    } else {
      found->value = entry.value;
    }
  }
}

ConfigNode load_named_model(const ConfigNode& name) {
  const auto fail = [&](const std::string& message) {
    throw ConfigError(fmt::format("{}: {}", name.place.to_string(), message));
  };
  if (name.kind != ConfigNode::Kind::scalar) fail("model.name: expected the name of a model or a file");
  fs::path file;
  try {
    file = eval::find_model_config(name.scalar);
  } catch (const ConfigError& error) {
    fail(error.what());
  }
  return load_config(file);
}

/// A run that starts from weights has their model and preprocessing, unless it names others.
ConfigNode take_from_weights(RunOptions& options) {
  const auto source = eval::open_checkpoint({.path = options.weights});
  if (options.preprocess.entries.empty()) options.preprocess = eval::to_node(source.preprocess);
  return models::to_node(source.config);
}

/// Throws: ConfigError if a model neither is whole nor names the one that it changes.
void check_is_whole(const ConfigNode& model) {
  for (const auto& [key, place, value] : model.entries) {
    if (nearest_word(key, {"name"}).empty()) continue;
    throw ConfigError(fmt::format("{}: model.{}: unknown key (did you mean name?)", place.to_string(), key));
  }
  const auto has = [&](const char* key) { return model.find(key) != nullptr; };
  if (has("embed_dim") || has("vision_cfg") || has("text_cfg")) return;
  throw ConfigError(
      fmt::format("{}: model: needs the name of the model that it changes, or embed_dim, vision_cfg and text_cfg",
                  model.place.to_string()));
}

models::ModelConfig resolve_model(RunOptions& options) {
  auto changes = options.model.kind == ConfigNode::Kind::scalar ? named_model(options.model) : options.model;
  auto whole = changes;
  if (const auto* name = changes.find("name")) {
    whole = load_named_model(*name);
    std::erase_if(changes.entries, [](const auto& entry) { return entry.key == "name"; });
    merge(whole, changes);
  } else if (!options.weights.empty() && changes.find("embed_dim") == nullptr) {
    whole = take_from_weights(options);
    merge(whole, changes);
  } else {
    check_is_whole(whole);
  }
  const auto config = models::load_model_config(whole);
  options.model = models::to_full_node(config);
  return config;
}

/// Every leaf of a document as "a.b.c" -> its text.
void flatten(const ConfigNode& node, const std::string& path, std::map<std::string, std::string>& leaves) {
  if (node.kind != ConfigNode::Kind::map) {
    leaves[path] = to_json(node, -1);
    return;
  }
  for (const auto& entry : node.entries)
    flatten(entry.value, path.empty() ? entry.key : path + "." + entry.key, leaves);
}

bool is_bookkeeping(const std::string& key) {
  static const std::vector<std::string> prefixes{"output",
                                                 "name",
                                                 "log.",
                                                 "checkpoint.",
                                                 "eval.",
                                                 "data.workers",
                                                 "data.prefetch_batches",
                                                 "data.max_bad_samples",
                                                 "model.checkpoint_activations",
                                                 "threads",
                                                 "distributed.timeout_seconds",
                                                 "distributed.bucket_mb",
                                                 "distributed.shard_optimizer",
                                                 "distributed.check_every_steps",
                                                 "tokenizer"};
  return std::any_of(prefixes.begin(), prefixes.end(), [&](const auto& prefix) { return key.starts_with(prefix); });
}

}  // namespace

void RunOptions::validate(const OptionScope& scope) const {
  const bool is_path = name.find('/') != std::string::npos || name == "." || name == "..";
  if (name.empty() || is_path) scope.fail("name", "names the run's folder: must be a word, not empty and not a path");
  const bool model_ok = model.kind == ConfigNode::Kind::map || model.kind == ConfigNode::Kind::scalar;
  if (!model_ok && model.kind != ConfigNode::Kind::null) scope.fail("model", "expected a name, a file or a map");
  if (model.kind == ConfigNode::Kind::null && weights.empty()) {
    scope.fail("model", "this key is required, unless weights names a checkpoint");
  }
  const bool preprocess_ok = preprocess.kind == ConfigNode::Kind::map || preprocess.kind == ConfigNode::Kind::null;
  if (!preprocess_ok) scope.fail("preprocess", "expected a map");
}

RunOptions load_run_options(const std::string& file, const std::vector<std::string>& overrides) {
  auto document = load_config(find_run_config(file));
  for (const auto& text : overrides) apply_run_override(document, text);
  auto options = read_options<RunOptions>(document);
  const auto model = resolve_model(options);
  options.preprocess = eval::to_node(eval::load_preprocess(options.preprocess, model.vision_cfg.image_size));
  return options;
}

std::string to_yaml(const RunOptions& options) {
  return contrastive::to_yaml(options_to_node(options));
}

OptionDifferences compare(const RunOptions& before, const RunOptions& now) {
  std::map<std::string, std::string> old_leaves;
  std::map<std::string, std::string> new_leaves;
  flatten(options_to_node(before), "", old_leaves);
  flatten(options_to_node(now), "", new_leaves);
  for (const auto& [key, value] : new_leaves) old_leaves.try_emplace(key, "absent");
  OptionDifferences differences;
  for (const auto& [key, value] : old_leaves) {
    const auto found = new_leaves.find(key);
    const auto& current = found == new_leaves.end() ? "absent" : found->second;
    if (current == value) continue;
    auto& list = is_bookkeeping(key) ? differences.of_bookkeeping : differences.of_training;
    list.push_back(fmt::format("{}: {}, now {}", key, value, current));
  }
  return differences;
}

}  // namespace contrastive::train
