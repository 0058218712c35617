#include "contrastive/text/clean_text.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "text/html_unescape.h"
#include "text/mojibake.h"
#include "text/unicode.h"

// The steps, their order and their tables are those of ftfy 6.3 (default settings) followed by Python's html.unescape,
// str.split and str.lower.

namespace contrastive::text {

namespace {

constexpr char32_t kEscape = 0x1B;

/// ftfy works on one line, or on a million characters of one, at a time.
constexpr size_t kMaxSegment = 1'000'000;

/// Repairs enable one another, so they are repeated until nothing changes. Real captions need two or three rounds; the
/// bound keeps nested entities (&amp;amp;amp;...) from taking quadratic time.
constexpr int kMaxRepairRounds = 32;

/// The digraphs U+01C4..01CC and U+01F1..01F3 have a letter pair each, in three casings.
std::u32string_view digraph(char32_t character) {
  static constexpr std::u32string_view kWithCaron[] = {U"D\u017D", U"D\u017E", U"d\u017E", U"LJ", U"Lj",
                                                       U"lj",      U"NJ",      U"Nj",      U"nj"};
  static constexpr std::u32string_view kPlain[] = {U"DZ", U"Dz", U"dz"};
  if (character >= 0x1C4 && character <= 0x1CC) return kWithCaron[character - 0x1C4];
  if (character >= 0x1F1 && character <= 0x1F3) return kPlain[character - 0x1F1];
  return {};
}

/// The letters of a Latin ligature or digraph; empty if it is none.
std::u32string_view ligature(char32_t character) {
  static constexpr std::u32string_view kTypographic[] = {U"ff", U"fi", U"fl", U"ffi", U"ffl", U"\u017Ft", U"st"};
  if (character >= 0xFB00 && character <= 0xFB06) return kTypographic[character - 0xFB00];
  if (character == 0x132) return U"IJ";
  if (character == 0x133) return U"ij";
  if (character == 0x149) return U"'n";  // by way of U+02BC, which the next steps straighten
  return digraph(character);
}

/// The standard form of U+FF01..FFEF; the character itself if it has none.
const std::u32string& standard_width(char32_t character) {
  constexpr char32_t kFirst = 0xFF01;
  static const auto kForms = [] {
    std::array<std::u32string, 0xFFF0 - kFirst> forms;
    for (size_t i = 0; i < forms.size(); ++i) forms[i] = to_nfkc(kFirst + static_cast<char32_t>(i));
    return forms;
  }();
  return kForms[character - kFirst];
}

/// Appends what one character becomes in the steps that look at single characters.
void append_repaired(std::u32string& out, char32_t c) {
  if (c >= 0x80 && c <= 0x9F) c = from_windows_1252(c);
  if (c < 0x100) {
    out += c == '\r' ? U'\n' : c;
  } else if (const auto letters = ligature(c); !letters.empty()) {
    out += letters;
  } else if (c == 0x3000) {
    out += U' ';
  } else if (c >= 0xFF01 && c <= 0xFFEF) {
    out += standard_width(c);
  } else if (c == 0x2BC || (c >= 0x2018 && c <= 0x201B)) {
    out += U'\'';
  } else if (c >= 0x201C && c <= 0x201F) {
    out += U'"';
  } else if (c == 0x2028 || c == 0x2029) {
    out += U'\n';
  } else {
    out += c;
  }
}

std::u32string repair_characters(std::u32string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n') continue;
    append_repaired(out, text[i]);
  }
  return out;
}

bool is_high_surrogate(char32_t c) {
  return c >= 0xD800 && c <= 0xDBFF;
}
bool is_low_surrogate(char32_t c) {
  return c >= 0xDC00 && c <= 0xDFFF;
}

/// Joins pairs of surrogates; a lone one becomes U+FFFD.
void join_surrogates(std::u32string& text) {
  size_t length = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    char32_t c = text[i];
    if (is_high_surrogate(c) && i + 1 < text.size() && is_low_surrogate(text[i + 1])) {
      c = 0x10000 + ((c - 0xD800) << 10) + (text[++i] - 0xDC00);
    } else if (is_high_surrogate(c) || is_low_surrogate(c)) {
      c = kReplacementCharacter;
    }
    text[length++] = c;
  }
  text.resize(length);
}

/// The end of the terminal escape (ESC [ digits and ';' letter) that starts at `position`; `position` if none does.
size_t end_of_terminal_escape(std::u32string_view text, size_t position) {
  if (text[position] != kEscape || position + 1 >= text.size() || text[position + 1] != '[') return position;
  size_t end = position + 2;
  while (end < text.size() && (text[end] == ';' || is_decimal_digit(text[end]))) ++end;
  const bool letter = end < text.size() && ((text[end] | 0x20) >= 'a' && (text[end] | 0x20) <= 'z');
  return letter ? end + 1 : position;
}

void remove_terminal_escapes(std::u32string& text) {
  size_t length = 0;
  for (size_t i = 0; i < text.size();) {
    const size_t end = end_of_terminal_escape(text, i);
    if (end == i) {
      text[length++] = text[i++];
    } else {
      i = end;
    }
  }
  text.resize(length);
}

bool is_unwanted_control(char32_t c) {
  return c <= 0x08 || c == 0x0B || (c >= 0x0E && c <= 0x1F) || c == 0x7F || (c >= 0x206A && c <= 0x206F) ||
         c == 0xFEFF || (c >= 0xFFF9 && c <= 0xFFFC);
}

/// No character below U+0300 combines with another or decomposes under NFC.
bool needs_nfc(std::u32string_view text) {
  return std::any_of(text.begin(), text.end(), [](char32_t c) { return c >= 0x300; });
}

std::u32string repair_once(std::u32string_view segment, bool unescape) {
  auto text = unescape ? unescape_closed_entities(segment) : std::u32string(segment);
  text = repair_characters(repair_mojibake(std::move(text)));
  join_surrogates(text);
  if (text.find(kEscape) != text.npos) remove_terminal_escapes(text);
  std::erase_if(text, is_unwanted_control);
  return needs_nfc(text) ? to_nfc(text) : text;
}

std::u32string repair_segment(std::u32string_view segment, bool unescape) {
  std::u32string text(segment);
  for (int round = 0; round < kMaxRepairRounds; ++round) {
    auto repaired = repair_once(text, unescape);
    if (repaired == text) break;
    text = std::move(repaired);
  }
  return text;
}

/// A '<' says that the text may be markup: from its line on, entities are left alone here.
std::u32string repair(std::u32string_view text) {
  std::u32string out;
  bool unescape = true;
  while (!text.empty()) {
    const size_t line_end = text.find(U'\n');
    const size_t line_length = line_end == text.npos ? text.size() : line_end + 1;
    const auto segment = text.substr(0, std::min(line_length, kMaxSegment));
    unescape = unescape && segment.find(U'<') == segment.npos;
    out += repair_segment(segment, unescape);
    text.remove_prefix(segment.size());
  }
  return out;
}

/// Every run of white space becomes one space, none at the ends.
std::u32string collapse_space(std::u32string_view text) {
  std::u32string out;
  out.reserve(text.size());
  bool pending = false;
  for (const char32_t c : text) {
    if (is_space(c)) {
      pending = !out.empty();
      continue;
    }
    if (pending) out += U' ';
    pending = false;
    out += c;
  }
  return out;
}

/// ASCII without entities and without characters that a repair would touch: most captions.
bool is_plain(std::string_view text) {
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<uint8_t>(text[i]);
    const bool printable = c >= 0x20 && c <= 0x7E;
    if (!printable && c != '\t' && c != '\n' && c != '\f' && c != '\r') return false;
    if (c == '&' && i + 1 < text.size() && text[i + 1] != ' ') return false;
  }
  return true;
}

/// What each ASCII character of plain text becomes; 0 if it goes.
using PlainTable = std::array<char, 128>;

constexpr PlainTable make_plain_table(Cleaning cleaning) {
  PlainTable table{};
  for (int i = 0; i < 128; ++i) {
    const bool letter_or_digit = (i >= '0' && i <= '9') || ((i | 0x20) >= 'a' && (i | 0x20) <= 'z');
    const bool upper = i >= 'A' && i <= 'Z';
    const bool goes = cleaning == Cleaning::canonicalize && !letter_or_digit && i != '_';
    const bool space = i <= ' ' || (cleaning == Cleaning::canonicalize && i == '_');
    const int kept = upper && cleaning != Cleaning::whitespace ? i + ('a' - 'A') : i;
    table[static_cast<size_t>(i)] = static_cast<char>(space ? ' ' : goes ? 0 : kept);
  }
  return table;
}

const PlainTable& plain_table(Cleaning cleaning) {
  static constexpr auto kWhitespace = make_plain_table(Cleaning::whitespace);
  static constexpr auto kLower = make_plain_table(Cleaning::lower);
  static constexpr auto kCanonicalize = make_plain_table(Cleaning::canonicalize);
  if (cleaning == Cleaning::whitespace) return kWhitespace;
  return cleaning == Cleaning::lower ? kLower : kCanonicalize;
}

std::string clean_plain(std::string_view text, Cleaning cleaning) {
  const auto& table = plain_table(cleaning);
  std::string out(text.size(), '\0');
  size_t length = 0;
  for (const char character : text) {
    const char c = table[static_cast<uint8_t>(character)];
    const bool superfluous = c == '\0' || (c == ' ' && (length == 0 || out[length - 1] == ' '));
    if (!superfluous) out[length++] = c;
  }
  if (length > 0 && out[length - 1] == ' ') --length;
  out.resize(length);
  return out;
}

void remove_punctuation(std::u32string& text) {
  std::replace(text.begin(), text.end(), U'_', U' ');
  std::erase_if(text, [](char32_t c) { return c < 0x7F && plain_table(Cleaning::canonicalize)[c] == '\0'; });
}

}  // namespace

std::string clean_text(std::string_view text, Cleaning cleaning) {
  if (cleaning == Cleaning::none) return std::string(text);
  if (is_plain(text)) return clean_plain(text, cleaning);
  auto cleaned = repair(decode_utf8(text, Surrogates::keep));
  cleaned = html_unescape(html_unescape(cleaned));
  if (cleaning == Cleaning::canonicalize) remove_punctuation(cleaned);
  cleaned = collapse_space(cleaned);
  return encode_utf8(cleaning == Cleaning::whitespace ? cleaned : to_lower(cleaned));
}

}  // namespace contrastive::text
