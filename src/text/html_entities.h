#pragma once

#include <string_view>

namespace contrastive::text {

/// A named character reference of HTML5. The name lacks the '&'; the 106 old names exist with and without ';'.
struct HtmlEntity {
  std::string_view name;
  char32_t first;
  char32_t second = 0;  ///< 0 if the name stands for one character
};

/// Longest name without its ';'.
inline constexpr int kMaxHtmlEntityName = 31;

/// The entity of exactly this name, or null. Names are case-sensitive.
const HtmlEntity* find_html_entity(std::string_view name);

}  // namespace contrastive::text
