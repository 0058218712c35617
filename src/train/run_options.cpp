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

/// A run that starts from weights has their model and preprocessing, unless it names others.
void take_from_weights(RunOptions& options) {
  if (options.weights.empty() || options.model.kind != ConfigNode::Kind::null) return;
  const auto source = eval::open_checkpoint({.path = options.weights});
  options.model = models::to_node(source.config);
  if (options.preprocess.entries.empty()) options.preprocess = eval::to_node(source.preprocess);
}

models::ModelConfig resolve_model(RunOptions& options) {
  take_from_weights(options);
  const auto& node = options.model;
  const auto config = node.kind == ConfigNode::Kind::map
                          ? models::load_model_config(node)
                          : models::model_config_from_file(eval::find_model_config(node.scalar));
  options.model = models::to_node(config);
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
                                                 "threads",
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
  for (const auto& text : overrides) apply_override(document, text);
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
