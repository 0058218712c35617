#include "text/unicode.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include <utf8proc.h>

#include "contrastive/core/error.h"

namespace contrastive::text {

namespace {

struct Range {
  char32_t first;
  char32_t last;
};

/// Letters and numbers that Unicode 15.1, 16 and 17 added: utf8proc 2.8 stops at 15.0, the reference's regex at 17.
constexpr Range kNewLetters[] = {
    {0x88F, 0x88F},     {0xC5C, 0xC5C},     {0xCDC, 0xCDC},     {0x1C89, 0x1C8A},   {0xA7CB, 0xA7CF},
    {0xA7D2, 0xA7D2},   {0xA7D4, 0xA7D4},   {0xA7DA, 0xA7DC},   {0xA7F1, 0xA7F1},   {0x105C0, 0x105F3},
    {0x10940, 0x10959}, {0x10D4A, 0x10D65}, {0x10D6F, 0x10D85}, {0x10EC2, 0x10EC7}, {0x11380, 0x11389},
    {0x1138B, 0x1138B}, {0x1138E, 0x1138E}, {0x11390, 0x113B5}, {0x113B7, 0x113B7}, {0x113D1, 0x113D1},
    {0x113D3, 0x113D3}, {0x11BC0, 0x11BE0}, {0x11DB0, 0x11DDB}, {0x13460, 0x143FA}, {0x16100, 0x1611D},
    {0x16D40, 0x16D6C}, {0x16EA0, 0x16EB8}, {0x16EBB, 0x16ED3}, {0x16FF2, 0x16FF3}, {0x187F8, 0x187FF},
    {0x18CFF, 0x18CFF}, {0x18D09, 0x18D1E}, {0x18D80, 0x18DF2}, {0x1E5D0, 0x1E5ED}, {0x1E5F0, 0x1E5F0},
    {0x1E6C0, 0x1E6DE}, {0x1E6E0, 0x1E6E2}, {0x1E6E4, 0x1E6E5}, {0x1E6E7, 0x1E6ED}, {0x1E6F0, 0x1E6F4},
    {0x1E6FE, 0x1E6FF}, {0x2B73A, 0x2B73F}, {0x2CEA2, 0x2CEAD}, {0x2EBF0, 0x2EE5D}, {0x323B0, 0x33479},
};
constexpr Range kNewNumbers[] = {
    {0x10D40, 0x10D49}, {0x116D0, 0x116E3}, {0x11BF0, 0x11BF9}, {0x11DE0, 0x11DE9}, {0x16130, 0x16139},
    {0x16D70, 0x16D79}, {0x16FF4, 0x16FF6}, {0x1CCF0, 0x1CCF9}, {0x1E5F1, 0x1E5FA},
};

/// Cased characters that are neither letters with case nor case-ignorable (Other_Lowercase and Other_Uppercase).
constexpr Range kOtherCased[] = {
    {0xAA, 0xAA},       {0xBA, 0xBA},       {0x2160, 0x217F},   {0x24B6, 0x24E9},
    {0x1F130, 0x1F149}, {0x1F150, 0x1F169}, {0x1F170, 0x1F189},
};

/// Case-ignorable characters that their category does not tell: word-break classes MidLetter, MidNumLet, Single_Quote.
constexpr Range kIgnorableMarks[] = {
    {'\'', '\''},     {'.', '.'},       {':', ':'},       {0xB7, 0xB7},     {0x387, 0x387},   {0x55F, 0x55F},
    {0x5F4, 0x5F4},   {0x2018, 0x2019}, {0x2024, 0x2024}, {0x2027, 0x2027}, {0xFE13, 0xFE13}, {0xFE52, 0xFE52},
    {0xFE55, 0xFE55}, {0xFF07, 0xFF07}, {0xFF0E, 0xFF0E}, {0xFF1A, 0xFF1A},
};

template <size_t N>
bool contains(const Range (&ranges)[N], char32_t character) {
  const auto* range = std::lower_bound(std::begin(ranges), std::end(ranges), character,
                                       [](const Range& r, char32_t c) { return r.last < c; });
  return range != std::end(ranges) && range->first <= character;
}

utf8proc_category_t category_of(char32_t character) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(character));
}

bool is_case_ignorable(char32_t character) {
  switch (category_of(character)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
      return true;
    default:
      return contains(kIgnorableMarks, character);
  }
}

bool is_cased(char32_t character) {
  const auto category = category_of(character);
  return category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL || category == UTF8PROC_CATEGORY_LT ||
         contains(kOtherCased, character);
}

/// Unicode's Final_Sigma: a cased character before, none after, case-ignorable ones not counted.
bool is_final_sigma(std::u32string_view text, size_t position) {
  size_t before = position;
  while (before > 0 && is_case_ignorable(text[before - 1])) --before;
  if (before == 0 || !is_cased(text[before - 1])) return false;
  size_t after = position + 1;
  while (after < text.size() && is_case_ignorable(text[after])) ++after;
  return after == text.size() || !is_cased(text[after]);
}

int combining_class(utf8proc_int32_t character) {
  return utf8proc_get_property(character)->combining_class;
}

void append_decomposed(std::vector<utf8proc_int32_t>& out, char32_t character, int options) {
  std::array<utf8proc_int32_t, 32> parts;  // the longest decomposition has 18 characters
  int last_boundary = 0;
  const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(character), parts.data(), parts.size(),
                                             static_cast<utf8proc_option_t>(options), &last_boundary);
  CONTRASTIVE_INTERNAL_ASSERT(count >= 0 && count <= static_cast<utf8proc_ssize_t>(parts.size()));
  out.insert(out.end(), parts.begin(), parts.begin() + count);
}

/// utf8proc's own reordering is quadratic in the length of a run of marks, so it is done here.
void sort_marks(std::vector<utf8proc_int32_t>& characters) {
  const auto is_starter = [](utf8proc_int32_t c) { return combining_class(c) == 0; };
  for (auto first = characters.begin(); first != characters.end();) {
    first = std::find_if_not(first, characters.end(), is_starter);
    const auto last = std::find_if(first, characters.end(), is_starter);
    std::stable_sort(first, last, [](auto a, auto b) { return combining_class(a) < combining_class(b); });
    first = last;
  }
}

std::vector<utf8proc_int32_t> decompose(std::u32string_view text) {
  std::vector<utf8proc_int32_t> decomposed;
  decomposed.reserve(text.size() + text.size() / 2);
  for (const char32_t character : text) append_decomposed(decomposed, character, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
  return decomposed;
}

std::u32string compose(std::vector<utf8proc_int32_t>& decomposed) {
  sort_marks(decomposed);
  const auto length = utf8proc_normalize_utf32(decomposed.data(), static_cast<utf8proc_ssize_t>(decomposed.size()),
                                               static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  CONTRASTIVE_INTERNAL_ASSERT(length >= 0);
  return std::u32string(decomposed.begin(), decomposed.begin() + length);
}

/// The bounds of the second byte of a sequence; they exclude overlong forms, surrogates and what lies above U+10FFFF.
struct SecondByte {
  uint8_t lowest;
  uint8_t highest;
};

SecondByte second_byte_after(uint8_t lead, Surrogates surrogates) {
  switch (lead) {
    case 0xE0:
      return {0xA0, 0xBF};
    case 0xED:
      return {0x80, surrogates == Surrogates::keep ? uint8_t{0xBF} : uint8_t{0x9F}};
    case 0xF0:
      return {0x90, 0xBF};
    case 0xF4:
      return {0x80, 0x8F};
    default:
      return {0x80, 0xBF};
  }
}

int continuation_bytes_after(uint8_t lead) {
  if (lead < 0xC2 || lead > 0xF4) return -1;
  return lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
}

}  // namespace

char32_t next_character(std::string_view utf8, size_t& position, Surrogates surrogates) {
  const auto lead = static_cast<uint8_t>(utf8[position++]);
  if (lead < 0x80) return lead;
  const int count = continuation_bytes_after(lead);
  if (count < 0) return kReplacementCharacter;
  auto [lowest, highest] = second_byte_after(lead, surrogates);
  char32_t character = lead & (0x3F >> count);
  for (int i = 0; i < count; ++i, ++position) {
    const auto byte = position < utf8.size() ? static_cast<uint8_t>(utf8[position]) : uint8_t{0};
    if (byte < lowest || byte > highest) return kReplacementCharacter;
    character = character << 6 | (byte & 0x3F);
    lowest = 0x80;
    highest = 0xBF;
  }
  return character;
}

std::u32string decode_utf8(std::string_view utf8, Surrogates surrogates) {
  std::u32string text;
  text.reserve(utf8.size());
  for (size_t position = 0; position < utf8.size();) text += next_character(utf8, position, surrogates);
  return text;
}

void append_utf8(std::string& out, char32_t character) {
  if (character < 0x80) {
    out += static_cast<char>(character);
    return;
  }
  std::array<utf8proc_uint8_t, 4> bytes;
  const auto count = utf8proc_encode_char(static_cast<utf8proc_int32_t>(character), bytes.data());
  out.append(bytes.begin(), bytes.begin() + count);
}

std::string encode_utf8(std::u32string_view text) {
  std::string utf8;
  utf8.reserve(text.size() * 2);
  for (const char32_t character : text) append_utf8(utf8, character);
  return utf8;
}

bool is_letter(char32_t character) {
  const auto category = category_of(character);
  return (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO) || contains(kNewLetters, character);
}

bool is_number(char32_t character) {
  const auto category = category_of(character);
  return (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO) || contains(kNewNumbers, character);
}

bool is_decimal_digit(char32_t character) {
  return category_of(character) == UTF8PROC_CATEGORY_ND;
}

bool is_punctuation(char32_t character) {
  const auto category = category_of(character);
  return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

bool is_space_separator(char32_t character) {
  return category_of(character) == UTF8PROC_CATEGORY_ZS;
}

bool is_control_or_unassigned(char32_t character) {
  const auto category = category_of(character);
  return category == UTF8PROC_CATEGORY_CN || category >= UTF8PROC_CATEGORY_CC;
}

bool is_space(char32_t character) {
  if (character < 0x80)
    return character == ' ' || (character >= 0x09 && character <= 0x0D) || (character >= 0x1C && character <= 0x1F);
  return character == 0x85 || character == 0xA0 || character == 0x1680 ||
         (character >= 0x2000 && character <= 0x200A) || character == 0x2028 || character == 0x2029 ||
         character == 0x202F || character == 0x205F || character == 0x3000;
}

char32_t from_windows_1252(char32_t c1_control) {
  static constexpr char16_t kTable[] = {
      0x20AC, 0x0081, 0x201A, 0x0192, 0x201E, 0x2026, 0x2020, 0x2021, 0x02C6, 0x2030, 0x0160,
      0x2039, 0x0152, 0x008D, 0x017D, 0x008F, 0x0090, 0x2018, 0x2019, 0x201C, 0x201D, 0x2022,
      0x2013, 0x2014, 0x02DC, 0x2122, 0x0161, 0x203A, 0x0153, 0x009D, 0x017E, 0x0178,
  };
  return kTable[c1_control - 0x80];
}

std::u32string to_lower(std::u32string_view text) {
  constexpr char32_t kCapitalSigma = 0x3A3;
  std::u32string lower;
  lower.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == kCapitalSigma) {
      lower += is_final_sigma(text, i) ? U'\u03C2' : U'\u03C3';
    } else if (text[i] == 0x130) {
      lower += U"i\u0307";
    } else {
      lower += static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(text[i])));
    }
  }
  return lower;
}

std::u32string to_nfc(std::u32string_view text) {
  auto decomposed = decompose(text);
  return compose(decomposed);
}

std::u32string without_accents(std::u32string_view text) {
  auto decomposed = decompose(text);
  sort_marks(decomposed);
  std::erase_if(decomposed, [](auto c) { return utf8proc_category(c) == UTF8PROC_CATEGORY_MN; });
  return std::u32string(decomposed.begin(), decomposed.end());
}

std::u32string to_nfkc(char32_t character) {
  std::vector<utf8proc_int32_t> decomposed;
  append_decomposed(decomposed, character, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT);
  return compose(decomposed);
}

}  // namespace contrastive::text
