#include "contrastive/core/options.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "contrastive/core/error.h"

#include "core/scalar.h"

namespace contrastive {
namespace {

const char* describe_kind(const ConfigNode& node) {
  switch (node.kind) {
    case ConfigNode::Kind::null:
      return "null";
    case ConfigNode::Kind::scalar:
      return "a value";
    case ConfigNode::Kind::sequence:
      return "a list";
    case ConfigNode::Kind::map:
      return "a map";
  }
  return "";
}

std::string describe(const ConfigNode& node) {
  return node.kind == ConfigNode::Kind::scalar ? fmt::format("'{}'", node.scalar) : describe_kind(node);
}

/// Levenshtein distance where swapping two neighbours counts as one edit.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> table(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) table[i][0] = i;
  std::iota(table[0].begin(), table[0].end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replace = table[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      table[i][j] = std::min({table[i - 1][j] + 1, table[i][j - 1] + 1, replace});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        table[i][j] = std::min(table[i][j], table[i - 2][j - 2] + 1);
      }
    }
  }
  return table[a.size()][b.size()];
}

std::string describe_range(const FieldCheck& check) {
  const auto low = fmt::format("{} {}", check.minimum_excluded ? "greater than" : "at least", check.minimum);
  const bool has_low = std::isfinite(check.minimum);
  const bool has_high = std::isfinite(check.maximum);
  if (has_low && has_high) return fmt::format("between {} and {}", check.minimum, check.maximum);
  return has_low ? low : fmt::format("at most {}", check.maximum);
}

bool in_range(double value, const FieldCheck& check) {
  const bool above = check.minimum_excluded ? value > check.minimum : value >= check.minimum;
  return above && value <= check.maximum;
}

}  // namespace

void OptionErrors::add(const ConfigPlace& place, const std::string& path, const std::string& message) {
  const auto where = place.to_string();
  messages_.push_back(
      fmt::format("{}{}{}{}{}", where, where.empty() ? "" : ": ", path, path.empty() ? "" : ": ", message));
}

void OptionErrors::throw_if_any() const {
  if (!messages_.empty()) throw ConfigError(fmt::format("{}", fmt::join(messages_, "\n")));
}

void OptionScope::fail(std::string_view key, const std::string& message) const {
  const ConfigNode* node = &node_;
  for (size_t begin = 0; node != nullptr && begin < key.size();) {  // a.b stands in the map of a
    const auto end = std::min(key.find('.', begin), key.size());
    node = node->find(key.substr(begin, end - begin));
    begin = end + 1;
  }
  const auto path = key.empty() ? path_ : (path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key));
  errors_.add(node != nullptr ? node->place : node_.place, path, message);
}

std::string nearest_word(std::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(1, word.size() / 3) + 1;
  for (const auto& candidate : candidates) {
    // The distance is at least the difference in length; words of any length may come from a file.
    const size_t difference = std::max(word.size(), candidate.size()) - std::min(word.size(), candidate.size());
    if (difference >= best_distance) continue;
    const size_t distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

namespace detail {

OptionsReader::OptionsReader(const ConfigNode& node, std::string path, OptionErrors& errors)
    : node_(node), path_(std::move(path)), errors_(errors) {}

void OptionsReader::finish() {
  for (const auto& entry : node_.entries) {
    if (std::find(known_.begin(), known_.end(), entry.key) != known_.end()) continue;
    const auto suggestion = nearest_word(entry.key, known_);
    errors_.add(entry.key_place, path_of(entry.key.c_str()),
                suggestion.empty() ? fmt::format("unknown key; known here: {}", fmt::join(known_, ", "))
                                   : fmt::format("unknown key (did you mean {}?)", suggestion));
  }
}

void OptionsReader::report_missing(const char* key) {
  errors_.add(node_.place, path_of(key), "this key is required");
}

void OptionsReader::report_type(const ConfigNode& node, const std::string& path, const std::string& expected) {
  errors_.add(node.place, path, fmt::format("expected {}, found {}", expected, describe(node)));
}

void OptionsReader::read(const ConfigNode& node, const std::string& path, bool& value, const FieldCheck&) {
  const bool plain = node.kind == ConfigNode::Kind::scalar && !node.quoted;
  const auto parsed = plain ? parse_bool(node.scalar) : std::nullopt;
  if (!parsed) return report_type(node, path, "true or false");
  value = *parsed;
}

void OptionsReader::read(const ConfigNode& node, const std::string& path, int64_t& value, const FieldCheck& check) {
  const bool plain = node.kind == ConfigNode::Kind::scalar && !node.quoted;
  const auto parsed = plain ? parse_integer(node.scalar) : std::nullopt;
  if (!parsed) return report_type(node, path, "an integer");
  if (!in_range(static_cast<double>(*parsed), check)) {
    return errors_.add(node.place, path, fmt::format("{} is out of range: must be {}", *parsed, describe_range(check)));
  }
  value = *parsed;
}

void OptionsReader::read(const ConfigNode& node, const std::string& path, double& value, const FieldCheck& check) {
  const bool plain = node.kind == ConfigNode::Kind::scalar && !node.quoted;
  const auto parsed = plain ? parse_real(node.scalar) : std::nullopt;
  if (!parsed) return report_type(node, path, "a number");
  if (!in_range(*parsed, check)) {
    return errors_.add(node.place, path, fmt::format("{} is out of range: must be {}", *parsed, describe_range(check)));
  }
  value = *parsed;
}

void OptionsReader::read(const ConfigNode& node, const std::string& path, std::string& value, const FieldCheck& check) {
  if (node.kind != ConfigNode::Kind::scalar) return report_type(node, path, "a string");
  const auto& choices = check.choices;
  if (!choices.empty() && std::find(choices.begin(), choices.end(), node.scalar) == choices.end()) {
    const auto suggestion = nearest_word(node.scalar, choices);
    return errors_.add(node.place, path,
                       fmt::format("'{}' is not one of {}{}", node.scalar, fmt::join(choices, ", "),
                                   suggestion.empty() ? "" : fmt::format(" (did you mean {}?)", suggestion)));
  }
  value = node.scalar;
}

void OptionsReader::read(const ConfigNode& node, const std::string&, ConfigNode& value, const FieldCheck&) {
  value = node;
}

ConfigNode OptionsWriter::node_of(bool value) {
  return ConfigNode::make_scalar(value ? "true" : "false");
}
ConfigNode OptionsWriter::node_of(int64_t value) {
  return ConfigNode::make_scalar(std::to_string(value));
}
ConfigNode OptionsWriter::node_of(double value) {
  return ConfigNode::make_scalar(print_real(value));
}
ConfigNode OptionsWriter::node_of(const std::string& value) {
  // A string that an unquoted reading would take for something else keeps its quotes.
  const bool ambiguous = is_null(value) || parse_bool(value) || parse_real(value);
  return ConfigNode::make_scalar(value, ambiguous);
}

}  // namespace detail
}  // namespace contrastive
