#include "data/sample_members.h"

#include <algorithm>
#include <charconv>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/error.h"

namespace contrastive::data::detail {
namespace {

constexpr std::string_view kWhiteSpace = " \t\n\r\f\v";

void check_utf8(std::string_view text) {
  const auto invalid = first_invalid_utf8(text);
  if (invalid) throw DataError(fmt::format("the caption is not UTF-8: wrong byte at {}", *invalid));
}

/// Length of the well-formed character at the front, or 0.
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range keeps out overlong forms, surrogates and values above U+10FFFF.
  const unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (byte(1) < low || byte(1) > high) return 0;
  for (size_t i = 2; i < length; ++i) {
    if (byte(i) < 0x80 || byte(i) > 0xBF) return 0;
  }
  return length;
}

std::vector<std::string> captions_of_text(std::string_view content, bool caption_lines) {
  check_utf8(content);
  std::vector<std::string> captions;
  if (!caption_lines) captions.emplace_back(strip(content));
  if (caption_lines) {
    for (const auto line : split_lines(content)) captions.emplace_back(strip(line));
  }
  return captions;
}

std::vector<std::string> captions_of_json(std::string_view content, const std::string& field) {
  const auto json = nlohmann::json::parse(content, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) throw DataError("the .json member is not a JSON object");
  const auto value = json.find(field);
  if (value == json.end() || value->is_null()) {
    throw MissingCaption(fmt::format("no caption: the .json member has no field \"{}\"", field));
  }
  std::vector<std::string> captions;
  const auto add = [&](const nlohmann::json& item) {
    if (!item.is_string()) {
      throw DataError(
          fmt::format("the .json member's field \"{}\" should be a string or a list of strings, but is {}{}", field,
                      value->is_array() ? "a list with " : "", item.type_name()));
    }
    captions.emplace_back(strip(item.get_ref<const std::string&>()));
  };
  // Copies of deeply nested values would overflow the stack.
  if (value->is_array()) {
    for (const auto& item : *value) add(item);
  } else {
    add(*value);
  }
  return captions;
}

std::string join_extensions(const std::vector<std::string>& keys) {
  std::string text;
  for (size_t i = 0; i < keys.size(); ++i) {
    text += fmt::format("{}.{}", i == 0 ? "" : i + 1 == keys.size() ? " or " : ", ", keys[i]);
  }
  return text;
}

}  // namespace

std::string_view strip(std::string_view text) {
  const auto begin = text.find_first_not_of(kWhiteSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kWhiteSpace) - begin + 1);
}

std::vector<std::string_view> split_lines(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const auto end = std::min(text.find('\n'), text.size());
    auto line = text.substr(0, end);
    if (line.ends_with('\r')) line.remove_suffix(1);
    lines.push_back(line);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

std::optional<size_t> first_invalid_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const auto length = utf8_length(text.substr(at));
    if (length == 0) return at;
    at += length;
  }
  return std::nullopt;
}

std::vector<std::string> parse_keys(const std::string& keys, const char* option) {
  std::vector<std::string> parsed;
  for (size_t begin = 0; begin <= keys.size();) {
    const auto end = std::min(keys.find(';', begin), keys.size());
    parsed.push_back(keys.substr(begin, end - begin));
    if (parsed.back().empty()) {
      throw ConfigError(
          fmt::format("{}: \"{}\" has an empty extension; expected something like jpg;png", option, keys));
    }
    begin = end + 1;
  }
  return parsed;
}

const std::vector<std::string>& label_keys(const WebdatasetOptions& options) {
  static const std::vector<std::string> vector{"npy"};
  return options.label_vector ? vector : kLabelKeys;
}

MemberKeys parse_member_keys(const WebdatasetOptions& options) {
  constexpr std::string_view kJson = "json:";
  MemberKeys keys;
  keys.label = label_keys(options);
  keys.image = parse_keys(options.image_keys, "image_keys");
  if (!options.caption_key.starts_with(kJson)) {
    keys.caption = parse_keys(options.caption_key, "caption_key");
    return keys;
  }
  keys.caption = {"json"};
  keys.json_field = options.caption_key.substr(kJson.size());
  if (keys.json_field.empty()) throw ConfigError("caption_key: \"json:\" needs the name of a field, like json:caption");
  return keys;
}

std::optional<IndexedMember> find_member(const IndexedSample& sample, const std::vector<std::string>& keys) {
  for (const auto& key : keys) {
    if (const auto member = sample.find(key)) return member;
  }
  return std::nullopt;
}

IndexedMember require_member(const IndexedSample& sample, const std::vector<std::string>& keys, const char* what) {
  if (const auto member = find_member(sample, keys)) return *member;
  throw DataError(
      fmt::format("no {}: expected a member {}; the sample has {}", what, join_extensions(keys), sample.member_list()));
}

void check_length(const IndexedMember& member, int64_t max_bytes) {
  if (member.length <= max_bytes) return;
  throw DataError(fmt::format("the member .{} has {} bytes, but at most {} are allowed (max_member_bytes)",
                              member.extension, member.length, max_bytes));
}

std::vector<std::string> parse_captions(std::string_view content, const std::string& json_field, bool caption_lines) {
  auto captions = json_field.empty() ? captions_of_text(content, caption_lines) : captions_of_json(content, json_field);
  std::erase(captions, std::string());
  if (captions.empty()) throw EmptyCaption("the caption is empty");
  return captions;
}

int64_t parse_label(std::string_view content, int64_t num_labels) {
  const auto text = strip(content);
  int64_t label = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), label);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw DataError(
        fmt::format("the label should be an integer, but the .cls member holds \"{}\"", text.substr(0, 40)));
  }
  if (label < 0) throw DataError(fmt::format("the label is {}, which is negative", label));
  if (num_labels > 0 && label >= num_labels) {
    throw DataError(
        fmt::format("the label is {}, but there are {} class names: expected [0, {})", label, num_labels, num_labels));
  }
  return label;
}

std::string image_extension(const std::vector<uint8_t>& encoded) {
  const std::string_view start(reinterpret_cast<const char*>(encoded.data()), std::min<size_t>(encoded.size(), 12));
  if (start.starts_with("\xff\xd8\xff")) return "jpg";
  if (start.starts_with("\x89PNG\r\n\x1a\n")) return "png";
  if (start.starts_with("RIFF") && start.ends_with("WEBP")) return "webp";
  throw DataError(fmt::format("the image of {} bytes is neither JPEG, PNG nor WebP", encoded.size()));
}

}  // namespace contrastive::data::detail
