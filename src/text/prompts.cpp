#include "contrastive/text/prompts.h"

#include <fmt/format.h>

#include "contrastive/core/error.h"

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

}  // namespace contrastive::text
