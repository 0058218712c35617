#include "text/html_unescape.h"

#include <algorithm>
#include <cstddef>

#include <utf8proc.h>

#include "text/html_entities.h"
#include "text/unicode.h"

namespace contrastive::text {

namespace {

constexpr size_t kMaxClosedName = 24;

bool is_digit(char32_t c) {
  return c >= '0' && c <= '9';
}
bool is_ascii_upper(char32_t c) {
  return c >= 'A' && c <= 'Z';
}
bool is_ascii_lower(char32_t c) {
  return c >= 'a' && c <= 'z';
}
bool is_alphanumeric(char32_t c) {
  return is_digit(c) || is_ascii_upper(c) || is_ascii_lower(c);
}

/// -1 if it is no digit of this base.
int digit_value(char32_t c, int base) {
  if (is_digit(c)) return static_cast<int>(c - '0');
  if (base == 16 && c >= 'a' && c <= 'f') return static_cast<int>(c - 'a') + 10;
  if (base == 16 && c >= 'A' && c <= 'F') return static_cast<int>(c - 'A') + 10;
  return -1;
}

bool is_noncharacter_or_control(char32_t c) {
  return (c >= 0x1 && c <= 0x8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || (c >= 0xFDD0 && c <= 0xFDEF) ||
         (c & 0xFFFE) == 0xFFFE;
}

void append_numbered(std::u32string& out, char32_t number) {
  if (number >= 0x80 && number <= 0x9F) {
    out += from_windows_1252(number);
  } else if (number == 0 || (number >= 0xD800 && number <= 0xDFFF) || number > 0x10FFFF) {
    out += kReplacementCharacter;
  } else if (!is_noncharacter_or_control(number)) {
    out += number;
  }
}

/// Reads "#123;" or "#x7b;" (the ';' may lack) at the start of `text`; returns the characters read, 0 if it is neither.
size_t read_numbered(std::u32string_view text, std::u32string& out) {
  const int base = text.size() > 1 && (text[1] == 'x' || text[1] == 'X') ? 16 : 10;
  const size_t start = base == 16 ? 2 : 1;
  size_t position = start;
  char32_t number = 0;
  for (; position < text.size() && digit_value(text[position], base) >= 0; ++position) {
    number = number * static_cast<char32_t>(base) + static_cast<char32_t>(digit_value(text[position], base));
    number = std::min<char32_t>(number, 0x110000);  // stays out of range however many digits follow
  }
  if (position == start) return 0;
  append_numbered(out, number);
  return position < text.size() && text[position] == ';' ? position + 1 : position;
}

std::string ascii_name(std::u32string_view text, size_t max_length) {
  std::string name;
  while (name.size() < std::min(max_length, text.size()) && is_alphanumeric(text[name.size()])) {
    name += static_cast<char>(text[name.size()]);
  }
  return name;
}

void append_entity(std::u32string& out, const HtmlEntity& entity) {
  out += entity.first;
  if (entity.second != 0) out += entity.second;
}

/// Reads the longest name at the start of `text`; returns the characters read, 0 if there is none.
size_t read_named(std::u32string_view text, std::u32string& out) {
  std::string name = ascii_name(text, kMaxHtmlEntityName + 1);
  if (name.size() < text.size() && text[name.size()] == ';') name += ';';
  for (; name.size() > 1; name.pop_back()) {
    if (const auto* entity = find_html_entity(name)) {
      append_entity(out, *entity);
      return name.size();
    }
  }
  return 0;
}

/// Reads the reference after an '&'; returns the characters read, 0 if there is none.
size_t read_reference(std::u32string_view text, std::u32string& out) {
  if (text.empty()) return 0;
  return text[0] == '#' ? read_numbered(text, out) : read_named(text, out);
}

/// Full upper-casing of what entity names stand for; the listed ones grow.
void append_upper(std::u32string& out, char32_t character) {
  switch (character) {
    case 0xDF:
      out += U"SS";
      return;
    case 0x149:
      out += U"\u02BCN";
      return;
    case 0xFB00:
      out += U"FF";
      return;
    case 0xFB01:
      out += U"FI";
      return;
    case 0xFB02:
      out += U"FL";
      return;
    case 0xFB03:
      out += U"FFI";
      return;
    case 0xFB04:
      out += U"FFL";
      return;
    default:
      out += static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(character)));
  }
}

/// A name in capitals means the upper case of the name in lower case, unless HTML itself reads a part of it.
bool read_capitals(const std::string& name, std::u32string& out) {
  std::u32string ignored;
  if (std::any_of(name.begin(), name.end(), [](char c) { return is_ascii_lower(c); }) ||
      read_named(std::u32string(name.begin(), name.end()), ignored) != 0) {
    return false;
  }
  std::string lower = name;
  for (char& c : lower) c = is_ascii_upper(c) ? static_cast<char>(c - 'A' + 'a') : c;
  const auto* entity = find_html_entity(lower);
  if (entity == nullptr) return false;
  append_upper(out, entity->first);
  if (entity->second != 0) append_upper(out, entity->second);
  return true;
}

/// Reads a reference that ends in ';' after an '&'; returns the characters read, 0 if there is none.
size_t read_closed_reference(std::u32string_view text, std::u32string& out) {
  const bool numbered = !text.empty() && text[0] == '#';
  std::string name = ascii_name(text.substr(numbered ? 1 : 0), kMaxClosedName);
  const size_t length = name.size() + (numbered ? 2 : 1);
  if (name.empty() || length > text.size() || text[length - 1] != ';') return 0;
  if (numbered) {
    std::u32string replacement;
    // A reference to ';' itself stays too, as in the reference.
    if (read_numbered(text, replacement) != length || replacement == U";") return 0;
    out += replacement;
    return length;
  }
  name += ';';
  if (const auto* entity = find_html_entity(name)) {
    append_entity(out, *entity);
    return length;
  }
  return read_capitals(name, out) ? length : 0;
}

template <typename Read>
std::u32string replace_references(std::u32string_view text, Read read) {
  std::u32string out;
  out.reserve(text.size());
  while (true) {
    const size_t ampersand = text.find(U'&');
    out += text.substr(0, ampersand);
    if (ampersand == text.npos) return out;
    text.remove_prefix(ampersand + 1);
    const size_t length = read(text, out);
    if (length == 0) out += U'&';
    text.remove_prefix(length);
  }
}

}  // namespace

std::u32string html_unescape(std::u32string_view text) {
  return replace_references(text, read_reference);
}

std::u32string unescape_closed_entities(std::u32string_view text) {
  return replace_references(text, read_closed_reference);
}

}  // namespace contrastive::text
