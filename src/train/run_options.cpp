#include "contrastive/train/run_options.h"

#include <algorithm>
#include <map>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/eval/checkpoint_source.h"
#include "contrastive/eval/preprocess_config.h"
#include "contrastive/eval/tower_source.h"
#include "contrastive/models/model_config.h"
#include "contrastive/train/training_data.h"

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

ConfigNode text_scalar(int64_t value) {
  return ConfigNode::make_scalar(std::to_string(value));
}

/// Puts a tower's config where the model has none.
void add_missing(ConfigNode& model, const char* key, const models::ModelConfig& config) {
  if (model.find(key) == nullptr) model.add(key, *models::to_node(config).find(key));
}

/// A model whose towers come from checkpoints needs to say only what these don't. Without embed_dim it is
/// that of a CLIP model's file; else the embedding is as wide as the image tower, which then has no projection. The
/// text tower gets one with bias (LiT).
void take_from_towers(RunOptions& options, ConfigNode& model) {
  const bool needs_image = model.find("vision_cfg") == nullptr && !options.image.checkpoint.empty();
  const bool needs_text = model.find("text_cfg") == nullptr && !options.text.checkpoint.empty();
  if (!needs_image && !needs_text) return;
  require_inputs(options);
  models::ModelConfig towers;
  if (needs_image) {
    const auto source = eval::open_image_tower(options.image.checkpoint);
    towers.vision_cfg = source.config;
    const bool is_clip = !source.config.is_timm();  // always has a projection
    const auto width = source.config.output_width();
    if (model.find("embed_dim") == nullptr) model.add("embed_dim", text_scalar(is_clip ? source.embed_dim : width));
    const bool is_as_wide = model.find("embed_dim")->scalar == std::to_string(width);
    towers.vision_cfg.proj_type = is_clip || is_as_wide ? "none" : "linear";
    towers.vision_cfg.proj_bias = !is_clip && !is_as_wide;
    add_missing(model, "vision_cfg", towers);
  }
  if (!needs_text) return;
  towers.text_cfg = eval::open_text_tower(options.text.checkpoint).config;
  towers.text_cfg.proj_type = "linear";
  towers.text_cfg.proj_bias = true;
  add_missing(model, "text_cfg", towers);
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

/// A run that starts from an image tower has its preprocessing, unless it names another.
void take_preprocess_from_tower(RunOptions& options, const models::ModelConfig& config) {
  if (!options.preprocess.entries.empty() || options.image.checkpoint.empty()) return;
  require_inputs(options);
  options.preprocess = eval::to_node(eval::open_image_tower(options.image.checkpoint, config.vision_cfg).preprocess);
}

models::ModelConfig resolve_model(RunOptions& options) {
  auto changes = options.model.kind == ConfigNode::Kind::scalar ? named_model(options.model) : options.model;
  if (changes.kind == ConfigNode::Kind::null) changes = ConfigNode::make_map();
  auto whole = changes;
  if (const auto* name = changes.find("name")) {
    whole = load_named_model(*name);
    std::erase_if(changes.entries, [](const auto& entry) { return entry.key == "name"; });
    merge(whole, changes);
  } else if (!options.weights.empty() && changes.find("embed_dim") == nullptr) {
    whole = take_from_weights(options);
    merge(whole, changes);
  } else {
    take_from_towers(options, whole);
    check_is_whole(whole);
  }
  const auto config = models::load_model_config(whole);
  options.model = models::to_full_node(config);
  take_preprocess_from_tower(options, config);
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
                                                 "image.batch_size",
                                                 "image.cache",
                                                 "where_to_get",
                                                 "tokenizer"};
  return std::any_of(prefixes.begin(), prefixes.end(), [&](const auto& prefix) { return key.starts_with(prefix); });
}

}  // namespace

namespace {

/// What a letter asks of a tower's other keys.
void check_tower(const std::string& key, char letter, const TowerOptions& tower, bool has_weights,
                 const OptionScope& scope) {
  const auto fail = [&](const char* name, const std::string& message) { scope.fail(key + "." + name, message); };
  if ((letter == 'L' || letter == 'U') && tower.checkpoint.empty() && !has_weights) {
    fail("checkpoint",
         fmt::format("letter {} in lock starts the {} tower from a checkpoint: give this key or weights", letter, key));
  }
  if (letter == 'u' && !tower.checkpoint.empty()) {
    fail("checkpoint",
         fmt::format("letter u in lock starts the {} tower from random weights, but a checkpoint is given", key));
  }
  if (letter == 'L') return;
  const std::string needs = fmt::format("has a meaning only for a locked tower (letter L in lock for {})", key);
  if (tower.unlocked_groups > 0) fail("unlocked_groups", needs);
  if (tower.unlock_at) fail("unlock_at", needs);
  if (tower.lock_head) fail("lock_head", needs);
}

void check_lock(const RunOptions& options, const OptionScope& scope) {
  const auto letter = [&](size_t i) { return options.lock.size() == 2 ? options.lock[i] : '-'; };
  check_tower("image", letter(0), options.image, !options.weights.empty(), scope);
  check_tower("text", letter(1), options.text, !options.weights.empty(), scope);
  if (options.lock == "LL" && options.image.lock_head && options.text.lock_head) {
    scope.fail("lock", "LL with both heads locked leaves nothing to train");
  }
  if (options.image.batch_size && (!options.locks_image() || options.image.unlocked_groups > 0)) {
    scope.fail("image.batch_size",
               "has a meaning only for a tower that is locked as a whole (letter L in lock for "
               "image, no unlocked_groups)");
  }
  if (options.image.cache.empty()) return;
  if (!options.eval.suite.empty()) {
    scope.fail("eval.suite", "needs the image tower, which a run on an image.cache doesn't open: use eval.zero_shot");
  }
  if (!options.locks_image() || options.image.unlocked_groups > 0 || options.image.unlock_at) {
    scope.fail("image.cache",
               "needs an image tower that stays locked: lock: Lu or LU, no unlocked_groups or unlock_at");
  }
}

}  // namespace

void RunOptions::validate(const OptionScope& scope) const {
  const bool is_path = name.find('/') != std::string::npos || name == "." || name == "..";
  if (name.empty() || is_path) scope.fail("name", "names the run's folder: must be a word, not empty and not a path");
  const bool model_ok = model.kind == ConfigNode::Kind::map || model.kind == ConfigNode::Kind::scalar;
  if (!model_ok && model.kind != ConfigNode::Kind::null) scope.fail("model", "expected a name, a file or a map");
  const bool has_towers = !image.checkpoint.empty() && !text.checkpoint.empty();
  if (model.kind == ConfigNode::Kind::null && weights.empty() && !has_towers) {
    scope.fail("model", "this key is required, unless weights, or image.checkpoint and text.checkpoint, name it");
  }
  check_lock(*this, scope);
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
