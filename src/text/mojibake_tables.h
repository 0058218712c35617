#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

/// What the repair of misread text knows of characters and code pages. Source: ftfy 6.3.1 (its classes of characters),
/// the Unicode Consortium's mapping tables (code pages).
namespace contrastive::text {

/// Classes of the characters that occur in UTF-8 read in a wrong code page; a set of bits.
enum MojibakeClass : uint32_t {
  kCommon = 1 << 0,  ///< in many contexts, not suspicious alone
  kC1 = 1 << 1,
  kBad = 1 << 2,  ///< hardly ever meant
  kLaw = 1 << 3,
  kCurrency = 1 << 4,
  kStartPunctuation = 1 << 5,
  kEndPunctuation = 1 << 6,
  kNumeric = 1 << 7,
  kKaomoji = 1 << 8,  ///< letters that faces are made of
  kUpperAccented = 1 << 9,
  kLowerAccented = 1 << 10,
  kUpperCommon = 1 << 11,
  kLowerCommon = 1 << 12,
  kBox = 1 << 13,
  kFirstOfTwo = 1 << 14,         ///< some code page has it where UTF-8 starts a sequence of two bytes
  kFirstOfThree = 1 << 15,       ///< of three bytes
  kFirstOfFour = 1 << 16,        ///< of four bytes
  kContinuation = 1 << 17,       ///< some code page has it at 0x80..0xBF; the space stands for 0xA0
  kPlainContinuation = 1 << 18,  ///< of these, the ones that also stand for themselves beside misread text
};

/// The classes of a character; 0 for most, and for all of ASCII but the space.
uint32_t mojibake_classes(char32_t character);

/// A single-byte encoding, ASCII below 0x80.
struct CodePage {
  std::array<char16_t, 128> upper_half;  ///< the characters of 0x80..0xFF; unassigned bytes are U+0080..U+00FF
  bool lossy;                            ///< byte 0x1A stands for U+FFFD, a character that was lost
  bool spaces_may_be_lost;               ///< a space may have been a no-break space, byte 0xA0
};

inline constexpr size_t kCodePages = 10;

/// The code pages in which UTF-8 is most often misread, in the order in which they are tried.
const std::array<CodePage, kCodePages>& code_pages();

/// The byte (0x80..0xFF) of a character above ASCII in code page number `page`; -1 if it has none.
int upper_half_byte(size_t page, char32_t character);

}  // namespace contrastive::text
