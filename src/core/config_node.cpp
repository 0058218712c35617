#include "contrastive/core/config_node.h"

#include <algorithm>
#include <map>
#include <sstream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"

#include "core/scalar.h"

namespace contrastive {
namespace {

constexpr int64_t kMaxConfigBytes = 4 << 20;
constexpr int64_t kMaxNodes = 20'000;  // aliases can multiply a small text into a huge document
constexpr size_t kMaxDepth = 100;      // reading and printing recurse; aliases nest deeper than the parser allows

[[noreturn]] void fail(const ConfigPlace& place, const std::string& message) {
  throw ConfigError(fmt::format("{}: {}", place.to_string(), message));
}

/// Builds the node tree from yaml-cpp's events, which, unlike its own tree, keep duplicates and places.
class NodeBuilder : public YAML::EventHandler {
 public:
  explicit NodeBuilder(std::string source) : source_(std::move(source)) {}

  ConfigNode take() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    ConfigNode node;
    node.place = place(mark);
    add(std::move(node), anchor);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto found = anchors_.find(anchor);
    if (found == anchors_.end()) fail(place(mark), "an alias refers to the map or list it stands in");
    count(found->second, place(mark), stack_.size());
    add(found->second, 0);
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    refuse_tag(mark, tag);
    ConfigNode node = ConfigNode::make_scalar(value, /*quoted=*/tag == "!");
    node.place = place(mark);
    if (!node.quoted && detail::is_null(value)) node.kind = ConfigNode::Kind::null;
    add(std::move(node), anchor);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    refuse_tag(mark, tag);
    open(ConfigNode::Kind::sequence, mark, anchor);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    refuse_tag(mark, tag);
    open(ConfigNode::Kind::map, mark, anchor);
  }
  void OnMapEnd() override { close(); }

 private:
  struct Open {
    ConfigNode node;
    YAML::anchor_t anchor;
    bool has_key = false;
    std::string key;
    ConfigPlace key_place;
  };

  ConfigPlace place(const YAML::Mark& mark) const { return {source_, mark.line + 1, mark.column + 1}; }

  /// yaml-cpp's tags for what has none: "?" for plain nodes, "!" for quoted scalars.
  void refuse_tag(const YAML::Mark& mark, const std::string& tag) const {
    if (tag != "?" && tag != "!" && !tag.empty()) fail(place(mark), fmt::format("the tag {} is not supported", tag));
  }

  /// Counts what a copy of a node adds to the document.
  void count(const ConfigNode& node, const ConfigPlace& where, size_t depth) {
    if (++nodes_ > kMaxNodes) fail(where, fmt::format("more than {} values: not a configuration", kMaxNodes));
    if (depth > kMaxDepth) fail(where, fmt::format("nested more than {} deep: not a configuration", kMaxDepth));
    for (const auto& item : node.items) count(item, where, depth + 1);
    for (const auto& entry : node.entries) count(entry.value, where, depth + 1);
  }

  void open(ConfigNode::Kind kind, const YAML::Mark& mark, YAML::anchor_t anchor) {
    ConfigNode node;
    node.kind = kind;
    node.place = place(mark);
    if (stack_.size() >= kMaxDepth) {
      fail(node.place, fmt::format("nested more than {} deep: not a configuration", kMaxDepth));
    }
    stack_.push_back({.node = std::move(node), .anchor = anchor, .has_key = false, .key = {}, .key_place = {}});
  }

  void close() {
    auto done = std::move(stack_.back());
    stack_.pop_back();
    add(std::move(done.node), done.anchor);
  }

  void add(ConfigNode node, YAML::anchor_t anchor) {
    if (++nodes_ > kMaxNodes) fail(node.place, fmt::format("more than {} values: not a configuration", kMaxNodes));
    if (anchor != 0) {
      count(node, node.place, stack_.size());
      anchors_[anchor] = node;
    }
    if (stack_.empty()) {
      root_ = std::move(node);
      return;
    }
    auto& parent = stack_.back();
    if (parent.node.kind == ConfigNode::Kind::sequence) {
      parent.node.items.push_back(std::move(node));
    } else if (!parent.has_key) {
      take_key(parent, node);
    } else {
      parent.node.entries.push_back({std::move(parent.key), parent.key_place, std::move(node)});
      parent.has_key = false;
    }
  }

  void take_key(Open& parent, const ConfigNode& node) {
    if (node.kind != ConfigNode::Kind::scalar) fail(node.place, "a key must be a word");
    for (const auto& entry : parent.node.entries) {
      if (entry.key == node.scalar) {
        fail(node.place, fmt::format("{}: duplicate key (first at line {})", node.scalar, entry.key_place.line));
      }
    }
    parent.key = node.scalar;
    parent.key_place = node.place;
    parent.has_key = true;
  }

  std::string source_;
  ConfigNode root_;
  std::vector<Open> stack_;
  std::map<YAML::anchor_t, ConfigNode> anchors_;
  int64_t nodes_ = 0;
};

/// A scalar as YAML that reads back as the same string, quoted only where it must be.
std::string yaml_scalar(const ConfigNode& node) {
  const auto& text = node.scalar;
  const bool plain = !text.empty() && !node.quoted &&
                     std::all_of(text.begin(), text.end(),
                                 [](unsigned char c) {
                                   return std::isalnum(c) != 0 || std::string_view("_-./+").find(
                                                                      static_cast<char>(c)) != std::string_view::npos;
                                 }) &&
                     text != "-" && text.substr(0, 3) != "---" && text.substr(0, 3) != "...";
  return plain ? text : nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void emit_yaml(const ConfigNode& node, int indent, std::string& out) {
  const std::string padding(static_cast<size_t>(indent), ' ');
  for (const auto& entry : node.entries) {
    out += padding + yaml_scalar(ConfigNode::make_scalar(entry.key, detail::is_null(entry.key))) + ":";
    const auto& value = entry.value;
    const bool is_nested = value.kind == ConfigNode::Kind::map && !value.entries.empty();
    out += is_nested ? "\n" : " ";
    if (is_nested) {
      emit_yaml(value, indent + 2, out);
    } else if (value.kind == ConfigNode::Kind::scalar) {
      out += yaml_scalar(value) + "\n";
    } else {
      out += to_json(value, -1) + "\n";  // flow style: JSON is YAML
    }
  }
}

nlohmann::ordered_json json_of(const ConfigNode& node) {
  using nlohmann::ordered_json;
  switch (node.kind) {
    case ConfigNode::Kind::null:
      return nullptr;
    case ConfigNode::Kind::scalar: {
      if (node.quoted) return node.scalar;
      if (const auto boolean = detail::parse_bool(node.scalar)) return *boolean;
      if (const auto integer = detail::parse_integer(node.scalar)) return *integer;
      if (const auto real = detail::parse_real(node.scalar)) return *real;
      return node.scalar;
    }
    case ConfigNode::Kind::sequence: {
      auto list = ordered_json::array();
      for (const auto& item : node.items) list.push_back(json_of(item));
      return list;
    }
    case ConfigNode::Kind::map: {
      auto map = ordered_json::object();
      for (const auto& entry : node.entries) map[entry.key] = json_of(entry.value);
      return map;
    }
  }
  return nullptr;
}

/// YAML has no control characters; yaml-cpp takes one of them for the end of the file.
void refuse_control_characters(std::string_view text, const std::string& source) {
  const auto is_control = [](unsigned char c) { return c < 0x20 && c != '\t' && c != '\n' && c != '\r'; };
  const auto found = std::find_if(text.begin(), text.end(), is_control);
  if (found == text.end()) return;
  const auto line_begin = std::find(std::make_reverse_iterator(found), text.rend(), '\n').base();
  const auto line = std::count(text.begin(), found, '\n') + 1;
  fail({source, static_cast<int>(line), static_cast<int>(found - line_begin) + 1},
       fmt::format("the control character 0x{:02x} is not allowed", static_cast<unsigned char>(*found)));
}

ConfigNode parse_document(std::string_view text, const std::string& source) {
  std::istringstream stream{std::string(text)};
  NodeBuilder builder(source);
  try {
    YAML::Parser parser(stream);
    if (!parser.HandleNextDocument(builder)) {
      ConfigNode nothing;
      nothing.place.source = source;
      return nothing;
    }
    NodeBuilder second(source);
    if (parser.HandleNextDocument(second)) throw ConfigError(source + ": more than one document");
  } catch (const YAML::Exception& error) {
    fail({source, error.mark.line + 1, error.mark.column + 1}, error.msg);
  }
  return builder.take();
}

void set_source(ConfigNode& node, const ConfigPlace& place) {
  node.place = place;
  for (auto& item : node.items) set_source(item, place);
  for (auto& entry : node.entries) {
    entry.key_place = place;
    set_source(entry.value, place);
  }
}

/// "a.b.c" in its parts.
std::vector<std::string> split_key(const std::string& path, const ConfigPlace& place) {
  std::vector<std::string> keys(1);
  for (const char c : path) {
    if (c == '.') {
      keys.emplace_back();
    } else {
      keys.back() += c;
    }
  }
  const bool has_empty = std::any_of(keys.begin(), keys.end(), [](const std::string& key) { return key.empty(); });
  if (has_empty) throw ConfigError(place.source + ": a part of the key is empty");
  return keys;
}

/// The value of a key, made if it is not there. `place` is that of what asks for it.
ConfigNode& child_of(ConfigNode& parent, const std::string& key, const ConfigPlace& place) {
  if (parent.kind == ConfigNode::Kind::null) parent.kind = ConfigNode::Kind::map;
  if (parent.kind != ConfigNode::Kind::map) {
    throw ConfigError(fmt::format("{}: there can be no key '{}' here, since {} gives a value and not a map",
                                  place.source, key, parent.place.to_string()));
  }
  for (auto& entry : parent.entries) {
    if (entry.key == key) return entry.value;
  }
  ConfigNode made;
  made.place = place;
  parent.entries.push_back({key, place, std::move(made)});
  return parent.entries.back().value;
}

}  // namespace

std::string ConfigPlace::to_string() const {
  return line > 0 ? fmt::format("{}:{}:{}", source, line, column) : source;
}

const ConfigNode* ConfigNode::find(std::string_view key) const {
  for (const auto& entry : entries) {
    if (entry.key == key) return &entry.value;
  }
  return nullptr;
}

ConfigNode ConfigNode::make_scalar(std::string value, bool quoted) {
  ConfigNode node;
  node.kind = Kind::scalar;
  node.scalar = std::move(value);
  node.quoted = quoted;
  return node;
}

ConfigNode ConfigNode::make_sequence(std::vector<ConfigNode> items) {
  ConfigNode node;
  node.kind = Kind::sequence;
  node.items = std::move(items);
  return node;
}

ConfigNode ConfigNode::make_map() {
  ConfigNode node;
  node.kind = Kind::map;
  return node;
}

void ConfigNode::add(std::string key, ConfigNode value) {
  CONTRASTIVE_INTERNAL_ASSERT(kind == Kind::map && find(key) == nullptr);
  entries.push_back({std::move(key), value.place, std::move(value)});
}

ConfigNode parse_config(std::string_view text, const std::string& source) {
  if (static_cast<int64_t>(text.size()) > kMaxConfigBytes) {
    throw ConfigError(fmt::format("{}: {} bytes are too many for a configuration", source, text.size()));
  }
  refuse_control_characters(text, source);
  // yaml-cpp takes quoted text that the end of the file cuts off for whole, unless the file ends within the line.
  const auto last = text.find_last_not_of(" \t\r\n");
  if (last != std::string_view::npos) parse_document(text.substr(0, last + 1), source);
  return parse_document(text, source);
}

ConfigNode load_config(const std::filesystem::path& file) {
  std::string text;
  try {
    text = read_text_file(file, kMaxConfigBytes);
  } catch (const Error& error) {
    throw ConfigError(error.what());
  }
  return parse_config(text, file.string());
}

void apply_override(ConfigNode& root, const std::string& override_text) {
  const auto equals = override_text.find('=');
  if (equals == std::string::npos || equals == 0) {
    throw ConfigError(fmt::format("'{}': an override reads key=value, e.g. optim.lr=1e-3", override_text));
  }
  const ConfigPlace place{fmt::format("override '{}'", override_text), 0, 0};
  const auto text = override_text.substr(equals + 1);
  auto value = text.empty() ? ConfigNode::make_scalar("", /*quoted=*/true) : parse_config(text, place.source);
  set_source(value, place);
  ConfigNode* node = &root;
  for (const auto& key : split_key(override_text.substr(0, equals), place)) node = &child_of(*node, key, place);
  *node = std::move(value);
}

std::string to_yaml(const ConfigNode& node) {
  std::string out;
  if (node.kind == ConfigNode::Kind::map && !node.entries.empty()) {
    emit_yaml(node, 0, out);
  } else {
    out = to_json(node, -1) + "\n";
  }
  return out;
}

std::string to_json(const ConfigNode& node, int indent) {
  return json_of(node).dump(indent, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace contrastive
