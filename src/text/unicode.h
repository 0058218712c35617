#pragma once

#include <cstddef>
#include <string>
#include <string_view>

/// Characters as the tokenizer's reference sees them: a thin layer over utf8proc, with what it lacks added.
namespace contrastive::text {

inline constexpr char32_t kReplacementCharacter = 0xFFFD;

/// What the three-byte forms of U+D800..DFFF become: `keep` hands them on as code points, `replace` treats them as
/// invalid.
enum class Surrogates { keep, replace };

/// Reads the character at `position` (inside `utf8`) and moves past it. Invalid input gives U+FFFD once per maximal
/// subpart, as Unicode recommends (section 3.9) and Python does.
char32_t next_character(std::string_view utf8, size_t& position, Surrogates surrogates = Surrogates::replace);

std::u32string decode_utf8(std::string_view utf8, Surrogates surrogates = Surrogates::replace);

/// `character` is a Unicode scalar value.
void append_utf8(std::string& out, char32_t character);
std::string encode_utf8(std::u32string_view text);

/// \p{L} and \p{N} of Unicode 17, \p{Nd} of utf8proc's version.
bool is_letter(char32_t character);
bool is_number(char32_t character);
bool is_decimal_digit(char32_t character);

/// \p{P} of utf8proc's version.
bool is_punctuation(char32_t character);

/// \p{Zs} of utf8proc's version.
bool is_space_separator(char32_t character);

/// \p{C} of utf8proc's version: controls, format characters, surrogates, private use and unassigned.
bool is_control_or_unassigned(char32_t character);

/// Python's str.isspace: White_Space and U+001C..1F.
bool is_space(char32_t character);

/// What Windows-1252 shows for the bytes 0x80..0x9F; its five unassigned ones stay as they are.
char32_t from_windows_1252(char32_t c1_control);

/// Full Unicode lower-casing of a whole text: the final sigma depends on its neighbours, U+0130 becomes two characters.
std::u32string to_lower(std::u32string_view text);

/// Normalisation form C, in O(n log n) also for hostile runs of combining marks.
std::u32string to_nfc(std::u32string_view text);

/// Decomposes and drops what is \p{Mn} then: é becomes e.
std::u32string without_accents(std::u32string_view text);

/// Normalisation form KC of one character.
std::u32string to_nfkc(char32_t character);

}  // namespace contrastive::text
