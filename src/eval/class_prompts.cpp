#include "contrastive/eval/class_prompts.h"

#include <algorithm>
#include <cstdint>
#include <unordered_map>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/text/prompts.h"

namespace contrastive::eval {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxPromptBytes = int64_t{1} << 30;
constexpr size_t kShownClasses = 5;

nlohmann::json read_json_object(const fs::path& file) {
  std::string content;
  try {
    content = read_text_file(file, kMaxPromptBytes);
  } catch (const Error& error) {
    throw DataError(error.what());
  }
  auto document = nlohmann::json::parse(content, nullptr, /*allow_exceptions=*/false);
  if (!document.is_object()) {
    throw DataError(fmt::format("[{}] expected a JSON object from classes to lists of prompts", file.string()));
  }
  return document;
}

std::vector<std::string> prompts_of(const fs::path& file, const std::string& key, const nlohmann::json& value) {
  std::vector<std::string> prompts;
  const auto fail = [&](const std::string& found) {
    throw DataError(
        fmt::format("[{}] \"{}\": expected a text or a list of texts, but found {}", file.string(), key, found));
  };
  const auto add = [&](const nlohmann::json& item) {
    if (!item.is_string()) fail(item.type_name());
    prompts.push_back(item.get<std::string>());
    if (prompts.back().empty()) fail("an empty text");
  };
  if (!value.is_array()) {
    add(value);
  } else {
    for (const auto& item : value) add(item);
  }
  if (prompts.empty()) fail("an empty list");
  return prompts;
}

/// The class's entry, by id or by name; null if there is none.
const nlohmann::json* find_entry(const fs::path& file, const nlohmann::json& document,
                                 const data::ClassificationSet& set, size_t number,
                                 const std::vector<int64_t>& first_of_name,
                                 const std::unordered_map<int64_t, int64_t>& name_counts, std::string& key) {
  if (!set.class_ids.empty()) {
    key = set.class_ids[number];
    if (const auto found = document.find(key); found != document.end()) return &*found;
  }
  key = set.class_names[number];
  const auto found = document.find(key);
  if (found == document.end()) return nullptr;
  if (const auto count = name_counts.at(first_of_name[number]); count > 1) {
    throw DataError(fmt::format(
        "[{}] \"{}\" is the name of {} classes, {} the first of them: their prompts need the classes' ids as keys{}",
        file.string(), key, count, first_of_name[number],
        set.class_ids.empty() ? " (and the set needs class_ids)" : ""));
  }
  return &*found;
}

}  // namespace

std::string ClassPrompts::fingerprint() const {
  std::string text;
  for (const auto& each : prompts) {
    text += fmt::format("{}\n", each.size());
    for (const auto& prompt : each) text += fmt::format("{} {}\n", prompt.size(), prompt);
  }
  return sha256_hex({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

ClassPrompts fill_templates(std::string name, const std::vector<std::string>& class_names,
                            const std::vector<std::string>& templates, bool canonicalize) {
  if (class_names.empty()) throw DataError("[fill_templates] there is no class name");
  if (templates.empty()) throw DataError("[fill_templates] there is no template");
  ClassPrompts result{std::move(name), {}};
  for (const auto& class_name : class_names) {
    auto& prompts = result.prompts.emplace_back();
    for (const auto& prompt_template : templates) {
      prompts.push_back(canonicalize ? text::fill_template(text::canonicalize_template(prompt_template),
                                                           text::canonicalize_class_name(class_name))
                                     : text::fill_template(prompt_template, class_name));
    }
  }
  return result;
}

ClassPrompts read_class_prompts(const fs::path& file, const data::ClassificationSet& set) {
  const auto document = read_json_object(file);
  const auto first_of_name = first_of_same_name(set.class_names);
  std::unordered_map<int64_t, int64_t> name_counts;
  for (const auto first : first_of_name) ++name_counts[first];
  ClassPrompts result{file.filename().string(), {}};
  std::vector<std::string> missing;
  for (size_t i = 0; i < set.class_names.size(); ++i) {
    std::string key;
    const auto* entry = find_entry(file, document, set, i, first_of_name, name_counts, key);
    if (entry == nullptr) {
      missing.push_back(fmt::format("\"{}\"", key));
    } else {
      result.prompts.push_back(prompts_of(file, key, *entry));
    }
  }
  if (missing.empty()) return result;
  const auto shown = std::min(missing.size(), kShownClasses);
  throw DataError(fmt::format("[{}] has no prompts for {} of {} classes: {}{}", file.string(), missing.size(),
                              set.class_names.size(),
                              fmt::join(missing.begin(), missing.begin() + static_cast<std::ptrdiff_t>(shown), ", "),
                              shown < missing.size() ? ", ..." : ""));
}

ClassPrompts class_prompts(const std::string& source, const data::ClassificationSet& set, bool canonicalize) {
  const bool own = source.empty() || source == "dataset";
  const auto& names = text::prompt_set_names();
  if (own) {
    if (set.templates.empty()) {
      throw ConfigError(
          fmt::format("[{}] the data set has no templates (zeroshot_classification_templates.txt): name prompts: {}, "
                      "or a file",
                      set.name, fmt::join(names, ", ")));
    }
    return fill_templates("dataset", set.class_names, set.templates, canonicalize);
  }
  if (std::find(names.begin(), names.end(), source) != names.end()) {
    return fill_templates(source, set.class_names, text::prompt_set(source), canonicalize);
  }
  if (!fs::exists(source)) {
    throw ConfigError(fmt::format("prompts: there is no set \"{}\" and no file of that name; sets are dataset, {}",
                                  source, fmt::join(names, ", ")));
  }
  if (fs::path(source).extension() == ".json") return read_class_prompts(source, set);
  return fill_templates(fs::path(source).filename().string(), set.class_names, text::read_templates(source),
                        canonicalize);
}

std::vector<int64_t> first_of_same_name(const std::vector<std::string>& class_names) {
  std::unordered_map<std::string, int64_t> first;
  std::vector<int64_t> result;
  for (size_t i = 0; i < class_names.size(); ++i) {
    result.push_back(first.emplace(class_names[i], static_cast<int64_t>(i)).first->second);
  }
  return result;
}

}  // namespace contrastive::eval
