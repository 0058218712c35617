#include "data/class_list.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"

#include "data/data_file.h"
#include "data/json_file.h"
#include "data/sample_members.h"

namespace contrastive::data::detail {
namespace {

namespace fs = std::filesystem;

constexpr const char* kImagenet = "imagenet";

bool is_wordnet_id(std::string_view text) {
  return text.size() == 9 && text[0] == 'n' && text.find_first_not_of("0123456789", 1) == std::string_view::npos;
}

/// The option's file, with `imagenet` standing for one of the library's.
fs::path resolve(const std::string& option, const char* what, const char* resource) {
  if (option != kImagenet || is_file(option)) return option;
  try {
    return find_resource(resource);
  } catch (const Error& error) {
    throw DataError(fmt::format("{}: imagenet: run scripts/setup.sh, or name a file: {}", what, error.what()));
  }
}

std::string first_word(const std::string& line) {
  return line.substr(0, line.find_first_of(" \t"));
}

std::vector<std::string> read_ids(const fs::path& file) {
  auto ids = read_list(file, "class id");
  std::map<std::string, size_t> seen;
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] = first_word(ids[i]);
    const auto [first, is_new] = seen.emplace(ids[i], i);
    if (!is_new) {
      throw DataError(fmt::format("[{}] line {}: the class id {} is there already in line {}", file.string(), i + 1,
                                  ids[i], first->second + 1));
    }
  }
  return ids;
}

/// The id that a line begins with, or "". Names begin with words that are folders too, so that only a tab ends an id
/// that isn't one of WordNet: with the folders benign and malignant, "benign tumor" is a name.
std::string leading_id(const std::string& line, const std::set<std::string>& known) {
  const auto tab = line.find('\t');
  if (tab != std::string::npos) {
    const auto id = std::string(strip(line.substr(0, tab)));
    if (known.contains(id)) return id;
  }
  const auto word = first_word(line);
  return is_wordnet_id(word) && word.size() < line.size() ? word : std::string();
}

/// Takes the ids off the lines if every line begins with one.
void split_off_ids(ClassList& list, const std::vector<std::string>& known_ids) {
  const std::set<std::string> known(known_ids.begin(), known_ids.end());
  std::set<std::string> seen;
  for (const auto& line : list.names) {
    const auto id = leading_id(line, known);
    if (id.empty() || !seen.insert(id).second) return;
  }
  for (auto& line : list.names) {
    const auto id = leading_id(line, known);
    const auto rest = std::string_view(line).substr(id.size());
    auto name = std::string(strip(rest.substr(0, rest.find(','))));
    if (name.empty()) {
      throw DataError(fmt::format("[{}] line {}: the class name is empty", list.file.string(), list.ids.size() + 1));
    }
    list.ids.push_back(id);
    line = std::move(name);
  }
}

/// Stripped. `where`: the place in the file.
std::string json_string(const ClassList& list, const std::string& where, const nlohmann::ordered_json& value) {
  if (!value.is_string()) throw_json_type(list.file, where, "a class name", value);
  const auto text = strip(value.get_ref<const std::string&>());
  if (text.empty()) throw DataError(fmt::format("[{}] {}: the class name is empty", list.file.string(), where));
  return std::string(text);
}

std::string place_of_key(const std::string& key) {
  return fmt::format("key \"{}\"", key);
}

[[noreturn]] void throw_wrong_number(const ClassList& list, const std::string& key, size_t count) {
  throw DataError(
      fmt::format("[{}] key \"{}\": expected the numbers 0 to {}, each once", list.file.string(), key, count - 1));
}

/// {"0": ["n01440764", "tench"], ...}
void read_index_object(const nlohmann::ordered_json& json, ClassList& list) {
  list.names.resize(json.size());
  list.ids.resize(json.size());
  for (const auto& [key, value] : json.items()) {
    size_t index = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), index);
    if (error != std::errc() || end != key.data() + key.size() || index >= json.size() || !list.names[index].empty()) {
      throw_wrong_number(list, key, json.size());
    }
    if (!value.is_array() || value.size() != 2) {
      throw_json_type(list.file, place_of_key(key), "a list of an id and a name", value);
    }
    list.ids[index] = json_string(list, place_of_key(key), value[0]);
    list.names[index] = json_string(list, place_of_key(key), value[1]);
    // Keras' and torchvision's files write "great_white_shark".
    std::replace(list.names[index].begin(), list.names[index].end(), '_', ' ');
  }
}

/// {"0": "tench", ...}: the keys are indices, or ids if the class folders have these names.
void read_numbered_object(const nlohmann::ordered_json& json, const std::vector<std::string>& known_ids,
                          ClassList& list) {
  std::map<size_t, std::string> sorted;
  for (const auto& [key, value] : json.items()) {
    sorted[*whole_number(key)] = json_string(list, place_of_key(key), value);
  }
  const auto is_key = [&](const std::string& id) {
    const auto number = whole_number(id);
    return number && sorted.contains(*number);
  };
  const bool are_ids = !known_ids.empty() && std::all_of(known_ids.begin(), known_ids.end(), is_key);
  const auto last = sorted.rbegin()->first;
  if (!are_ids && last != sorted.size() - 1) throw_wrong_number(list, std::to_string(last), sorted.size());
  for (auto& [number, name] : sorted) {
    if (are_ids) list.ids.push_back(std::to_string(number));
    list.names.push_back(std::move(name));
  }
}

void read_json_names(ClassList& list, const std::vector<std::string>& known_ids) {
  const auto json = read_json_file(list.file);
  if (!json.is_structured()) throw_json_type(list.file, "the file", "an object or a list of class names", json);
  if (json.empty()) throw DataError(fmt::format("[{}] holds no class name", list.file.string()));
  if (json.is_array()) {
    for (const auto& value : json) {
      list.names.push_back(json_string(list, fmt::format("name {}", list.names.size() + 1), value));
    }
    return;
  }
  if (json.front().is_array()) return read_index_object(json, list);
  const auto items = json.items();
  if (std::all_of(items.begin(), items.end(), [](const auto& item) { return whole_number(item.key()).has_value(); })) {
    return read_numbered_object(json, known_ids, list);
  }
  std::map<std::string, std::string> sorted;
  for (const auto& [key, value] : json.items()) sorted[key] = json_string(list, place_of_key(key), value);
  for (auto& [id, name] : sorted) {
    list.ids.push_back(id);
    list.names.push_back(std::move(name));
  }
}

bool is_json(const fs::path& file) {
  if (lower_extension(file) == ".json") return true;
  const auto content = read_utf8_file(file);
  return strip(content).starts_with('{');
}

void read_names(ClassList& list, const std::vector<std::string>& known_ids) {
  if (is_json(list.file)) return read_json_names(list, known_ids);
  list.names = read_list(list.file, "class name");
  split_off_ids(list, known_ids);
}

/// Puts names that have ids in the order of `ids`, or gives ids to those that have none.
void combine(ClassList& list, std::vector<std::string> ids, const fs::path& ids_file) {
  if (list.names.empty()) {
    list.file = ids_file;
  } else if (!list.ids.empty()) {
    std::map<std::string, std::string> name_of;
    for (size_t i = 0; i < list.ids.size(); ++i) name_of[list.ids[i]] = list.names[i];
    list.names.clear();
    for (const auto& id : ids) {
      const auto name = name_of.find(id);
      if (name == name_of.end()) {
        throw DataError(
            fmt::format("[{}] has no name for the class id {} of [{}]", list.file.string(), id, ids_file.string()));
      }
      list.names.push_back(name->second);
    }
  } else if (list.names.size() != ids.size()) {
    throw DataError(
        fmt::format("[{}] has {} class names, but [{}] has {} class ids: line i of one belongs to line i "
                    "of the other",
                    list.file.string(), list.names.size(), ids_file.string(), ids.size()));
  }
  list.ids = std::move(ids);
}

fs::path find_names_file(const ClassificationSetOptions& options, const std::vector<fs::path>& folders) {
  if (!options.class_names.empty()) return resolve(options.class_names, "class_names", "imagenet/classnames.txt");
  for (const auto* name : {"classnames.txt", "LOC_synset_mapping.txt", "imagenet_class_index.json"}) {
    if (const auto file = find_file(folders, name)) return *file;
  }
  return {};
}

}  // namespace

ClassList read_class_list(const ClassificationSetOptions& options, const std::vector<fs::path>& folders,
                          const std::vector<std::string>& known_ids) {
  ClassList list;
  list.file = find_names_file(options, folders);
  std::vector<std::string> ids;
  fs::path ids_file;
  if (!options.class_ids.empty()) {
    ids_file = resolve(options.class_ids, "class_ids", "imagenet/synsets.txt");
    ids = read_ids(ids_file);
  }
  auto known = known_ids;
  known.insert(known.end(), ids.begin(), ids.end());
  if (!list.file.empty()) read_names(list, known);
  if (!ids.empty()) combine(list, std::move(ids), ids_file);
  return list;
}

std::vector<std::string> find_templates(const std::vector<fs::path>& folders) {
  const auto file = find_file(folders, "zeroshot_classification_templates.txt");
  if (!file) return {};
  auto templates = read_list(*file, "template");
  for (size_t i = 0; i < templates.size(); ++i) {
    if (templates[i].find("{c}") == std::string::npos) {
      throw DataError(fmt::format("[{}] line {}: the template \"{}\" has no {{c}} for the class name", file->string(),
                                  i + 1, templates[i]));
    }
  }
  return templates;
}

std::optional<fs::path> find_file(const std::vector<fs::path>& folders, const char* name) {
  std::error_code error;
  for (const auto& folder : folders) {
    if (fs::exists(folder / name, error)) return folder / name;
  }
  return std::nullopt;
}

std::optional<size_t> whole_number(std::string_view text) {
  size_t number = 0;
  if (text.size() > 1 && text[0] == '0') return std::nullopt;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size() ? std::optional(number) : std::nullopt;
}

std::string comparable_name(std::string_view name) {
  std::string text(name);
  for (auto& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
    if (c == '_') c = ' ';
  }
  return std::string(strip(text));
}

}  // namespace contrastive::data::detail
