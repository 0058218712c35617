#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "contrastive/core/export.h"

namespace contrastive {

/// Where a value stands: "vit.yaml:14:3", or the override it came from.
struct ConfigPlace {
  std::string source;
  int line = 0;    ///< from 1; 0 where lines mean nothing
  int column = 0;  ///< from 1

  CONTRASTIVE_API std::string to_string() const;
};

struct ConfigEntry;

/// One value of a parsed YAML or JSON document, with its place. Knows nothing of what it means.
struct CONTRASTIVE_API ConfigNode {
  enum class Kind { null, scalar, sequence, map };

  Kind kind = Kind::null;
  std::string scalar;                ///< `scalar` only
  bool quoted = false;               ///< a quoted scalar is a string whatever it looks like
  std::vector<ConfigNode> items;     ///< `sequence` only
  std::vector<ConfigEntry> entries;  ///< `map` only, in document order
  ConfigPlace place;

  /// The value of a key of this map, or null.
  const ConfigNode* find(std::string_view key) const;

  static ConfigNode make_scalar(std::string value, bool quoted = false);
  static ConfigNode make_sequence(std::vector<ConfigNode> items);
  static ConfigNode make_map();

  /// Adds a key to this map.
  void add(std::string key, ConfigNode value);
};

struct ConfigEntry {
  std::string key;
  ConfigPlace key_place;
  ConfigNode value;
};

/// Parses one YAML (or JSON) document. Throws: ConfigError with file:line:column on a syntax error, a duplicate key,
/// more than one document, or a document too large to be a configuration.
CONTRASTIVE_API ConfigNode parse_config(std::string_view text, const std::string& source);

/// The same from a file.
CONTRASTIVE_API ConfigNode load_config(const std::filesystem::path& file);

/// Applies "a.b.c=value" (the value is YAML; nothing is the empty text) to a document, making maps on the way.
/// Throws: ConfigError if there is no '=', the key is empty, or a parent is not a map.
CONTRASTIVE_API void apply_override(ConfigNode& root, const std::string& override_text);

/// The node as YAML text, two spaces an indent; parsing it gives the same node.
CONTRASTIVE_API std::string to_yaml(const ConfigNode& node);

/// The node as JSON text; scalars that are numbers, booleans or null in YAML are so in JSON.
CONTRASTIVE_API std::string to_json(const ConfigNode& node, int indent = 2);

}  // namespace contrastive
