#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "contrastive/core/config_node.h"
#include "contrastive/core/export.h"

/// Strict reading and printing of option structs. A struct lists its fields once:
///
///     struct CheckpointOptions {
///       int64_t every_steps = 1000;
///       template <typename Fields>
///       void fields(Fields& f) {
///         f("every_steps", every_steps, at_least(1));
///       }
///     };
///
/// Reading, defaults, ranges, printing and "did you mean" all come from that list. A field is a bool, int64_t, double,
/// std::string, ConfigNode (taken as it is), another such struct, or a std::optional or std::vector of these.
/// A struct may also have `void validate(const OptionScope&) const` for checks across fields.
namespace contrastive {

/// What a field's value must satisfy.
struct FieldCheck {
  double minimum = -std::numeric_limits<double>::infinity();
  double maximum = std::numeric_limits<double>::infinity();
  bool minimum_excluded = false;
  bool required = false;
  std::vector<std::string> choices{};  ///< strings only; empty allows any
};

inline FieldCheck at_least(double minimum) {
  return {.minimum = minimum};
}
inline FieldCheck greater_than(double minimum) {
  return {.minimum = minimum, .minimum_excluded = true};
}
inline FieldCheck between(double minimum, double maximum) {
  return {.minimum = minimum, .maximum = maximum};
}
inline FieldCheck one_of(std::vector<std::string> choices) {
  return {.choices = std::move(choices)};
}
inline FieldCheck required() {
  return {.required = true};
}

/// Collects what is wrong with a document, so that all of it is reported together.
class CONTRASTIVE_API OptionErrors {
 public:
  /// `path` is the key with its parents, e.g. "optim.lr".
  void add(const ConfigPlace& place, const std::string& path, const std::string& message);
  bool empty() const { return messages_.empty(); }

  /// Throws: ConfigError with every message, a line each, if there are any.
  void throw_if_any() const;

 private:
  std::vector<std::string> messages_;
};

/// A place inside a document together with where to report: what `validate` gets.
class CONTRASTIVE_API OptionScope {
 public:
  OptionScope(const ConfigNode& node, std::string path, OptionErrors& errors)
      : node_(node), path_(std::move(path)), errors_(errors) {}

  /// Reports a problem with a key of this scope ("" for the scope itself) at the place where the key stands.
  void fail(std::string_view key, const std::string& message) const;

 private:
  const ConfigNode& node_;
  std::string path_;
  OptionErrors& errors_;
};

namespace detail {

class OptionsReader;
template <typename T>
concept HasFields = requires(T& value, OptionsReader& reader) {
  value.fields(reader);
};
template <typename T>
concept HasValidate = requires(const T& value, const OptionScope& scope) {
  value.validate(scope);
};

/// Reads one map of a document into the fields of one struct.
class CONTRASTIVE_API OptionsReader {
 public:
  OptionsReader(const ConfigNode& node, std::string path, OptionErrors& errors);

  template <typename T>
  void operator()(const char* key, T& value, const FieldCheck& check = {}) {
    known_.emplace_back(key);
    const ConfigNode* node = node_.find(key);
    if (node == nullptr) {
      if (check.required) report_missing(key);
      return;
    }
    read(*node, path_of(key), value, check);
  }

  /// Reports keys that no field claimed.
  void finish();

  template <typename T>
  requires HasFields<T>
  static void read_struct(const ConfigNode& node, const std::string& path, T& value, OptionErrors& errors) {
    OptionsReader reader(node, path, errors);
    value.fields(reader);
    reader.finish();
    if constexpr (HasValidate<T>) value.validate(OptionScope(node, path, errors));
  }

 private:
  void read(const ConfigNode& node, const std::string& path, bool& value, const FieldCheck& check);
  void read(const ConfigNode& node, const std::string& path, int64_t& value, const FieldCheck& check);
  void read(const ConfigNode& node, const std::string& path, double& value, const FieldCheck& check);
  void read(const ConfigNode& node, const std::string& path, std::string& value, const FieldCheck& check);
  void read(const ConfigNode& node, const std::string& path, ConfigNode& value, const FieldCheck& check);

  template <typename T>
  requires HasFields<T>
  void read(const ConfigNode& node, const std::string& path, T& value, const FieldCheck&) {
    if (node.kind == ConfigNode::Kind::map) {
      read_struct(node, path, value, errors_);
    } else {
      report_type(node, path, "a map");
    }
  }

  template <typename T>
  void read(const ConfigNode& node, const std::string& path, std::optional<T>& value, const FieldCheck& check) {
    if (node.kind == ConfigNode::Kind::null) {
      value.reset();
      return;
    }
    read(node, path, value ? *value : value.emplace(), check);
  }

  template <typename T>
  void read(const ConfigNode& node, const std::string& path, std::vector<T>& value, const FieldCheck& check) {
    if (node.kind != ConfigNode::Kind::sequence) {
      report_type(node, path, "a list");
      return;
    }
    value.assign(node.items.size(), T{});
    for (size_t i = 0; i < value.size(); ++i) {
      read(node.items[i], path + "[" + std::to_string(i) + "]", value[i], check);
    }
  }

  std::string path_of(const char* key) const { return path_.empty() ? key : path_ + "." + key; }
  void report_missing(const char* key);
  void report_type(const ConfigNode& node, const std::string& path, const std::string& expected);

  const ConfigNode& node_;
  std::string path_;
  OptionErrors& errors_;
  std::vector<std::string> known_;
};

/// Turns the fields of one struct into a map node.
class CONTRASTIVE_API OptionsWriter {
 public:
  template <typename T>
  void operator()(const char* key, T& value, const FieldCheck& = {}) {
    map_.add(key, node_of(value));
  }

  ConfigNode take() { return std::move(map_); }

 private:
  static ConfigNode node_of(bool value);
  static ConfigNode node_of(int64_t value);
  static ConfigNode node_of(double value);
  static ConfigNode node_of(const std::string& value);
  static ConfigNode node_of(const ConfigNode& value) { return value; }

  template <typename T>
  requires HasFields<T>
  static ConfigNode node_of(T& value) {
    OptionsWriter writer;
    value.fields(writer);
    return writer.take();
  }
  template <typename T>
  static ConfigNode node_of(std::optional<T>& value) {
    return value ? node_of(*value) : ConfigNode{};
  }
  template <typename T>
  static ConfigNode node_of(std::vector<T>& value) {
    std::vector<ConfigNode> items;
    for (auto& item : value) items.push_back(node_of(item));
    return ConfigNode::make_sequence(std::move(items));
  }

  ConfigNode map_ = ConfigNode::make_map();
};

}  // namespace detail

/// Reads a document into a struct that starts from its defaults.
/// Throws: ConfigError that lists every unknown, mistyped, missing or out-of-range key with its place.
template <typename Options>
Options read_options(const ConfigNode& root) {
  Options options;
  OptionErrors errors;
  if (root.kind == ConfigNode::Kind::map || root.kind == ConfigNode::Kind::null) {  // an empty file sets nothing
    detail::OptionsReader::read_struct(root, "", options, errors);
  } else {
    errors.add(root.place, "", "expected a map of keys and values");
  }
  errors.throw_if_any();
  return options;
}

/// Every field of a struct with its value; reading the result gives an equal struct.
template <typename Options>
ConfigNode options_to_node(Options options) {
  detail::OptionsWriter writer;
  options.fields(writer);
  return writer.take();
}

/// The candidate nearest to `word` if it is near enough to be a misspelling of it, else "".
CONTRASTIVE_API std::string nearest_word(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace contrastive
