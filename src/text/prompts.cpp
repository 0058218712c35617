#include "contrastive/text/prompts.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"

#include "text/unicode.h"

namespace contrastive::text {

namespace {

constexpr std::string_view kPlaceholders[] = {"{c}", "{}"};

/// The length of the placeholder at the start of `text`; 0 if there is none.
size_t placeholder_length(std::string_view text) {
  for (const auto placeholder : kPlaceholders) {
    if (text.starts_with(placeholder)) return placeholder.size();
  }
  return 0;
}

constexpr const char* kClip80File = "imagenet/templates_openai.txt";
constexpr std::string_view kBareName = "{c}";
constexpr int64_t kMaxTemplateBytes = 16 << 20;

constexpr std::string_view kClipBest[] = {"itap of a {c}.",
                                          "a bad photo of the {c}.",
                                          "a origami {c}.",
                                          "a photo of the large {c}.",
                                          "a {c} in a video game.",
                                          "art of the {c}.",
                                          "a photo of the small {c}.",
                                          kBareName};

bool is_ascii_punctuation(char32_t c) {
  const bool letter_or_digit = (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
  return c > ' ' && c < 0x7F && !letter_or_digit;
}

std::string lower_with_single_spaces(std::string_view text) {
  std::u32string out;
  for (const char32_t c : to_lower(decode_utf8(text))) {
    if (!is_space(c)) {
      out += c;
    } else if (!out.empty() && out.back() != U' ') {
      out += U' ';
    }
  }
  if (!out.empty() && out.back() == U' ') out.pop_back();
  return encode_utf8(out);
}

/// The text without ASCII punctuation, spaces for underscores; `kept_length(rest)` bytes at the start of a rest stay.
template <typename KeptLength>
std::string without_punctuation(std::string_view text, const KeptLength& kept_length) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const size_t kept = kept_length(text.substr(i));
    if (kept > 0) {
      out += text.substr(i, kept);
      i += kept;
      continue;
    }
    const char c = text[i++];
    if (c == '_') {
      out += ' ';
    } else if (!is_ascii_punctuation(static_cast<uint8_t>(c))) {
      out += c;
    }
  }
  return out;
}

}  // namespace

std::string fill_template(std::string_view prompt_template, std::string_view class_name) {
  std::string prompt;
  bool filled = false;
  for (size_t i = 0; i < prompt_template.size();) {
    const size_t length = placeholder_length(prompt_template.substr(i));
    if (length == 0) {
      prompt += prompt_template[i++];
      continue;
    }
    prompt += class_name;
    filled = true;
    i += length;
  }
  if (!filled) {
    throw DataError(
        fmt::format("[fill_template] template \"{}\" must contain {{c}} or {{}}, but has neither", prompt_template));
  }
  return prompt;
}

const std::vector<std::string>& prompt_set_names() {
  static const std::vector<std::string> names = {"clip_paper", "clip_80", "clip_best", "class_name"};
  return names;
}

std::vector<std::string> prompt_set(std::string_view name) {
  if (name == "class_name") return {std::string(kBareName)};
  if (name == "clip_best") return {std::begin(kClipBest), std::end(kClipBest)};
  if (name != "clip_80" && name != "clip_paper") {
    throw ConfigError(
        fmt::format("[prompt_set] there is no set \"{}\"; sets are {}", name, fmt::join(prompt_set_names(), ", ")));
  }
  auto templates = read_templates(find_resource(kClip80File));
  if (name == "clip_paper") templates.emplace_back(kBareName);
  return templates;
}

std::vector<std::string> read_templates(const std::filesystem::path& file) {
  std::string content;
  try {
    content = read_text_file(file, kMaxTemplateBytes);
  } catch (const Error& error) {
    throw DataError(error.what());
  }
  std::vector<std::string> templates;
  for (size_t begin = 0; begin < content.size();) {
    const size_t end = std::min(content.find('\n', begin), content.size());
    auto line = content.substr(begin, end - begin);
    if (line.ends_with('\r')) line.pop_back();
    templates.push_back(std::move(line));
    begin = end + 1;
  }
  while (!templates.empty() && templates.back().empty()) templates.pop_back();
  if (templates.empty()) throw DataError(fmt::format("[{}] holds no template", file.string()));
  for (size_t i = 0; i < templates.size(); ++i) {
    const auto& line = templates[i];
    const bool has_placeholder = std::any_of(std::begin(kPlaceholders), std::end(kPlaceholders),
                                             [&](auto placeholder) { return line.find(placeholder) != line.npos; });
    if (has_placeholder) continue;
    throw DataError(fmt::format("[{}] line {}: template \"{}\" must contain {{c}} or {{}}, but has neither",
                                file.string(), i + 1, line));
  }
  return templates;
}

std::string canonicalize_template(std::string_view prompt_template) {
  return lower_with_single_spaces(without_punctuation(prompt_template, placeholder_length));
}

std::string canonicalize_class_name(std::string_view class_name) {
  const auto first_alias = class_name.substr(0, class_name.find(','));
  return lower_with_single_spaces(without_punctuation(first_alias, [](std::string_view) { return size_t{0}; }));
}

}  // namespace contrastive::text
