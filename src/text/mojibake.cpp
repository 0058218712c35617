#include "text/mojibake.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <span>
#include <utility>

#include "text/mojibake_tables.h"
#include "text/unicode.h"

namespace contrastive::text {

namespace {

// Repairs enable one another: text can be misread several times, each of which at least doubles its length. The bound
// is far above what a text can need, and only keeps a cycle from hanging.
constexpr int kMaxRounds = 64;

// ---- Unlikely sequences of characters

/// Classes that are computed when a rule asks for them, beside those of the tables.
enum ComputedClass : uint32_t {
  kLatinLower = 1 << 24,  ///< a to z
  kLatinUpper = 1 << 25,  ///< A to Z
  kLatinLetter = kLatinLower | kLatinUpper,
  kNoLatinLetter = 1 << 26,
  kWhiteSpace = 1 << 27,
  kWord = 1 << 28,  ///< letters, numbers and '_'
  kNoLineFeed = 1 << 29,
};
constexpr uint32_t kComputed = kLatinLetter | kNoLatinLetter | kWhiteSpace | kWord | kNoLineFeed;

constexpr uint32_t kAccented = kLowerAccented | kUpperAccented;
constexpr uint32_t kPunctuation = kStartPunctuation | kEndPunctuation;

/// Characters of some classes, and some single ones.
struct CharacterSet {
  uint32_t classes = 0;
  std::u32string_view characters = {};

  constexpr bool empty() const { return classes == 0 && characters.empty(); }
};

/// Adjacent characters, one of each set.
struct Rule {
  std::array<CharacterSet, 7> sets;
  bool only_at_start = false;
};

// Windows-1252 reads the lead bytes of Arabic as one of two letters; what may follow them.
constexpr CharacterSet kArabicLead = {0, U"\u00D8\u00D9"};
constexpr CharacterSet kArabicContinuation = {kCommon | kCurrency | kBad | kNumeric | kStartPunctuation,
                                              U"\u0178\u0160\u00AE\u00B0\u00B5\u00BB"};
constexpr CharacterSet kCyrillicLead = {0, U"\u0412\u0413\u0420\u0421"};
constexpr CharacterSet kGreekLead = {0, U"\u0392\u0393\u039E\u039F"};
constexpr CharacterSet kLatinLead = {0, U"\u00C2\u00C3"};
constexpr CharacterSet kSpaceOnly = {0, U" "};

/// Every rule has a character of the tables' classes among its first three.
constexpr Rule kRules[] = {
    {{{{kC1}}}},
    {{{{kBad | kAccented | kBox | kPunctuation | kCurrency | kNumeric | kLaw}, {kBad}}}},
    {{{{kBad}, {kAccented | kBox | kPunctuation | kCurrency | kNumeric | kLaw}}}},
    {{{{kLatinLetter}, {kLowerCommon | kUpperCommon}, {kBad}}}},
    {{{{kLowerAccented | kLowerCommon | kBox | kEndPunctuation | kCurrency | kNumeric}, {kUpperAccented}}}},
    {{{{kBox | kEndPunctuation | kCurrency | kNumeric}, {kLowerAccented}}}},
    {{{{kLowerAccented | kBox | kEndPunctuation}, {kCurrency}}}},
    {{{{kWhiteSpace}, {kUpperAccented}, {kCurrency}}}},
    {{{{kUpperAccented | kBox}, {kNumeric | kLaw}}}},
    {{{{kAccented | kBox | kCurrency | kEndPunctuation}, {kStartPunctuation}, {kNumeric}}}},
    {{{{kAccented | kCurrency | kNumeric | kBox | kLaw}, {kEndPunctuation}, {kStartPunctuation}}}},
    {{{{kCurrency | kNumeric | kBox}, {kStartPunctuation}}}},
    {{{{kLatinLower}, {kUpperAccented}, {kStartPunctuation | kCurrency}}}},
    {{{{kBox}, {kKaomoji | kEndPunctuation}}}},
    {{{{kAccented | kCurrency | kNumeric | kPunctuation | kLaw}, {kBox}}}},
    {{{{kAccented}, {kPunctuation}, {kWord}}}},
    {{{{0, U"\u0152\u0153"}, {kNoLatinLetter}}}},
    {{{{kUpperAccented}, {0, U"\u00B0"}}}},
    // Windows-1252
    {{{{0, U"\u00C2\u00C3\u00CE\u00D0"},
       {kPunctuation,
        U"\u20AC\u0153\u0160\u0161\u00A2\u00A3\u0178\u017E\u00A0\u00AD\u00AE\u00A9\u00B0\u00B7\u00BB"
        U"\u2013\u2014\u00B4"}}}},
    {{{{0, U"\u00D7"}, {0, U"\u00B2\u00B3"}}}},
    {{{kArabicLead, kArabicContinuation, kArabicLead, kArabicContinuation}}},
    {{{{0, U"\u00E0"}, {0, U"\u00B2\u00B5\u00B9\u00BC\u00BD\u00BE"}}}},
    {{{{0, U"\u00C3"}, {0, U"\u00A0\u00A1"}}}},
    {{{{kLatinLower}, kLatinLead, kSpaceOnly}}},
    {{{{kLatinLower}, {kWhiteSpace}, kLatinLead, kSpaceOnly}}},
    {{{kLatinLead, kSpaceOnly}}, /*only_at_start=*/true},
    {{{{uint32_t{kLatinLower} | kEndPunctuation, U".,?!"}, {0, U"\u00C2"}, {kPunctuation, U" "}}}},
    // MacRoman
    {{{{0, U"\u221A"}, {0, U"\u00B1\u2202\u2020\u2260\u00AE\u2122\u00B4\u2264\u2265\u00A5\u00B5\u00F8"}}}},
    {{{{0, U"\u2248"}, {0, U"\u00B0\u00A2"}}}},
    {{{{0, U"\u201A"},
       {0, U"\u00C4"},
       {0, U"\u00EC\u00EE\u00EF\u00F2\u00F4\u00FA\u00F9\u00FB\u2020\u00B0\u00A2\u03C0"}}}},
    {{{{0, U"\u201A"}, {0, U"\u00E2\u00F3"}, {0, U"\u00E0\u00E4\u00B0\u00EA"}}}},
    // Windows-1251; the last is Windows-1251 on top of Latin-1
    {{{{0, U"\u0432"}, {0, U"\u0402"}}}},
    {{{kCyrillicLead, {kC1 | kBad | kPunctuation | kCurrency, U"\u00B0\u00B5"}, kCyrillicLead}}},
    {{{{0, U"\u0413"},
       {0, U"\u045E"},
       {0, U"\u0412"},
       {0, U"\u0402"},
       {0, U"\u0412"},
       {kNoLineFeed},
       {kLatinLetter, U" "}}}},
    // Windows-1253
    {{{{0, U"\u03B2"}, {0, U"\u20AC"}, {0, U"\u2122\u00A0\u0386\u00AD\u00AE\u00B0"}}}},
    {{{kGreekLead, {kC1 | kBad | kPunctuation | kCurrency, U"\u00B0"}, kGreekLead}}},
    // Windows-1257
    {{{{0, U"\u0101"}, {0, U"\u20AC"}}}},
};

uint32_t computed_classes(char32_t c) {
  uint32_t classes = c == '\n' ? 0U : uint32_t{kNoLineFeed};
  if (c >= 'a' && c <= 'z') return classes | kLatinLower | kWord;
  if (c >= 'A' && c <= 'Z') return classes | kLatinUpper | kWord;
  classes |= kNoLatinLetter;
  if (is_space(c)) classes |= kWhiteSpace;
  if (c == '_' || is_letter(c) || is_number(c)) classes |= kWord;
  return classes;
}

bool contains(const CharacterSet& set, char32_t c) {
  if ((set.classes & mojibake_classes(c)) != 0 || set.characters.find(c) != set.characters.npos) return true;
  return (set.classes & kComputed) != 0 && (set.classes & computed_classes(c)) != 0;
}

bool matches(const Rule& rule, std::u32string_view text, size_t position) {
  if (rule.only_at_start && position > 0) return false;
  for (const auto& set : rule.sets) {
    if (set.empty()) return true;
    if (position >= text.size() || !contains(set, text[position])) return false;
    ++position;
  }
  return true;
}

bool is_suspicious(char32_t c) {
  return c >= 0x80 && mojibake_classes(c) != 0;
}

/// One bit a rule.
using RuleSet = uint64_t;
static_assert(std::size(kRules) <= 64);

RuleSet find_rules_from(char32_t c) {
  RuleSet rules = 0;
  for (size_t i = 0; i < std::size(kRules); ++i) rules |= RuleSet{contains(kRules[i].sets[0], c)} << i;
  return rules;
}

/// The rules that may start with a character, looked up where it is in a common range: most texts need no more.
RuleSet rules_from(char32_t c) {
  static const auto kDense = [] {
    std::array<RuleSet, 0x2200> rules;
    for (size_t i = 0; i < rules.size(); ++i) rules[i] = find_rules_from(static_cast<char32_t>(i));
    return rules;
  }();
  return c < kDense.size() ? kDense[c] : find_rules_from(c);
}

bool any_rule_matches(std::u32string_view text, size_t position) {
  for (RuleSet rules = rules_from(text[position]); rules != 0; rules &= rules - 1) {
    if (matches(kRules[std::countr_zero(rules)], text, position)) return true;
  }
  return false;
}

// ---- Bytes that are nearly UTF-8

/// Classes of bytes: where they may stand in a sequence that lost a byte.
enum ByteClass : uint32_t {
  kContinuationByte = 1 << 0,  ///< 80..BF
  kLostByte = 1 << 1,          ///< 1A
  kQuestionMark = 1 << 2,      ///< which often takes the place of what can't be written
  kSpaceByte = 1 << 3,
  kLeadOfTwo = 1 << 4,           ///< C2..DF
  kLeadOfLatin1 = 1 << 5,        ///< C2, C3
  kLeadOfThree = 1 << 6,         ///< E0..EF
  kLeadOfFour = 1 << 7,          ///< F0..F4
  kLeadOfSurrogate = 1 << 8,     ///< ED
  kHighSurrogate = 1 << 9,       ///< A0..AF
  kLowSurrogate = 1 << 10,       ///< B0..BF
  kLeadBeforeSpace = 1 << 11,    ///< those that make a likely character with A0
  kLeadE2E3 = 1 << 12,           ///< E2, E3
  kLeadE0ToE3 = 1 << 13,         ///< E0..E3
  kLeadF0 = 1 << 14,             ///< F0
  kLikelyContinuation = 1 << 15  ///< 80..BF without 85 and A0
};

constexpr std::array<uint32_t, 256> make_byte_classes() {
  std::array<uint32_t, 256> classes{};
  const auto mark = [&](int first, int last, uint32_t bit) {
    for (int byte = first; byte <= last; ++byte) classes[static_cast<size_t>(byte)] |= bit;
  };
  mark(0x80, 0xBF, kContinuationByte | kLikelyContinuation);
  classes[0x85] &= ~uint32_t{kLikelyContinuation};
  classes[0xA0] &= ~uint32_t{kLikelyContinuation};
  mark(0x1A, 0x1A, kLostByte);
  mark('?', '?', kQuestionMark);
  mark(' ', ' ', kSpaceByte);
  mark(0xC2, 0xDF, kLeadOfTwo);
  mark(0xC2, 0xC3, kLeadOfLatin1);
  mark(0xE0, 0xEF, kLeadOfThree);
  mark(0xF0, 0xF4, kLeadOfFour);
  mark(0xED, 0xED, kLeadOfSurrogate);
  mark(0xA0, 0xAF, kHighSurrogate);
  mark(0xB0, 0xBF, kLowSurrogate);
  for (const int byte : {0xC2, 0xC3, 0xC5, 0xCE, 0xD0, 0xD9}) mark(byte, byte, kLeadBeforeSpace);
  mark(0xE2, 0xE3, kLeadE2E3);
  mark(0xE0, 0xE3, kLeadE0ToE3);
  mark(0xF0, 0xF0, kLeadF0);
  return classes;
}
constexpr auto kByteClasses = make_byte_classes();

using ByteRule = std::array<uint32_t, 4 + 1>;  // 0 ends a rule

constexpr uint32_t kLost = kLostByte | kQuestionMark;
constexpr uint32_t kLostOrContinuation = kLostByte | kContinuationByte;
constexpr uint32_t kAnyOfThree = kLost | kContinuationByte;

/// Sequences that lost a byte or several; a question mark counts as one at most once.
constexpr ByteRule kLossyRules[] = {
    {kLeadOfTwo, kLostByte},
    {kLeadOfLatin1, kQuestionMark},
    {kLeadOfThree, kLost, kLostOrContinuation},
    {kLeadOfThree, kLostOrContinuation, kLost},
    {kLeadOfFour, kLost, kLostOrContinuation, kLostOrContinuation},
    {kLeadOfFour, kLostOrContinuation, kLost, kLostOrContinuation},
    {kLeadOfFour, kLostOrContinuation, kLostOrContinuation, kLost},
    {kLostByte},
};

/// Sequences with a space where A0 belongs.
constexpr ByteRule kSpaceRules[] = {
    {kLeadBeforeSpace, kSpaceByte},
    {kLeadE2E3, kSpaceByte, kLikelyContinuation},
    {kLeadE0ToE3, kLikelyContinuation, kSpaceByte},
    {kLeadF0, kSpaceByte, kContinuationByte, kContinuationByte},
    {kLeadF0, kContinuationByte, kSpaceByte, kContinuationByte},
    {kLeadF0, kContinuationByte, kContinuationByte, kSpaceByte},
};

bool has_class(std::string_view bytes, size_t position, uint32_t classes) {
  return position < bytes.size() && (kByteClasses[static_cast<uint8_t>(bytes[position])] & classes) != 0;
}

/// The length of the first rule that fits the start of `bytes`; 0 if none does.
size_t match_length(std::span<const ByteRule> rules, std::string_view bytes) {
  for (const auto& rule : rules) {
    size_t length = 0;
    while (rule[length] != 0 && has_class(bytes, length, rule[length])) ++length;
    if (rule[length] == 0) return length;
  }
  return 0;
}

/// A pair of surrogates in three-byte form (CESU-8) of which one half or both lost their last byte.
size_t lossy_pair_length(std::string_view bytes) {
  const bool pair = has_class(bytes, 0, kLeadOfSurrogate) && has_class(bytes, 1, kHighSurrogate) &&
                    has_class(bytes, 2, kAnyOfThree) && has_class(bytes, 3, kLeadOfSurrogate) &&
                    has_class(bytes, 4, kLowSurrogate) && has_class(bytes, 5, kAnyOfThree);
  return pair && (has_class(bytes, 2, kLost) || has_class(bytes, 5, kLost)) ? 6 : 0;
}

/// Puts U+FFFD in the place of sequences that lost bytes.
std::string replace_lossy_sequences(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  while (!bytes.empty()) {
    size_t length = lossy_pair_length(bytes);
    if (length == 0) length = match_length(kLossyRules, bytes);
    if (length > 0) {
      out += "\uFFFD";
    } else {
      out += bytes[length++];
    }
    bytes.remove_prefix(length);
  }
  return out;
}

/// Whether C3 and a space at the start of `bytes` are the French or Catalan word à and not the start of a Portuguese
/// one (às, àquele, àquela, àquilo); before a further space there is no doubt either.
bool is_word_a_grave(std::string_view bytes) {
  if (!bytes.starts_with("\xC3 ")) return false;
  const auto rest = bytes.substr(2);
  const auto starts_rest = [&](std::string_view start) { return rest.starts_with(start); };
  constexpr std::string_view kStarts[] = {" ", "quele", "quela", "quilo", "s "};
  return std::none_of(std::begin(kStarts), std::end(kStarts), starts_rest);
}

/// Restores the byte A0 where it became a space. The word à keeps a space behind it.
std::string restore_no_break_spaces(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() + 8);
  while (!bytes.empty()) {
    if (is_word_a_grave(bytes)) {
      out += "\xC3\xA0 ";
      bytes.remove_prefix(2);
      continue;
    }
    const size_t length = std::max(match_length(kSpaceRules, bytes), size_t{1});
    for (const char byte : bytes.substr(0, length)) out += byte == ' ' && length > 1 ? '\xA0' : byte;
    bytes.remove_prefix(length);
  }
  return out;
}

// ---- Decoding

/// Whether a continuation byte stands at `position`. A final line feed counts as one: the reference's patterns let it.
bool continues(std::string_view bytes, size_t position) {
  return has_class(bytes, position, kContinuationByte) || (position + 1 == bytes.size() && bytes[position] == '\n');
}

/// The low six bits of a byte.
char32_t payload(char byte) {
  return static_cast<uint8_t>(byte) & 0x3F;
}

/// U+0000 in Java's two-byte form or a pair of surrogates in three-byte form (CESU-8) at `position`.
std::optional<char32_t> next_variant(std::string_view bytes, size_t& position) {
  const auto rest = bytes.substr(position);
  if (rest.starts_with('\xC0') && rest.size() > 1 && (rest[1] == '\x80' || rest == "\xC0\n")) {
    position += 2;
    return U'\0';
  }
  const bool pair = has_class(rest, 0, kLeadOfSurrogate) && has_class(rest, 1, kHighSurrogate) &&
                    has_class(rest, 2, kContinuationByte) && has_class(rest, 3, kLeadOfSurrogate) &&
                    has_class(rest, 4, kLowSurrogate) && continues(rest, 5);
  if (!pair) return std::nullopt;
  position += 6;
  return 0x10000 +
         ((payload(rest[1]) & 0xF) << 16 | payload(rest[2]) << 10 | (payload(rest[4]) & 0xF) << 6 | payload(rest[5]));
}

/// The text of UTF-8 bytes, also of its variants; nothing if they are invalid.
std::optional<std::u32string> decode(std::string_view bytes) {
  std::u32string text;
  text.reserve(bytes.size());
  for (size_t position = 0; position < bytes.size();) {
    if (const auto variant = next_variant(bytes, position)) {
      text += *variant;
      continue;
    }
    const bool replacement = bytes.substr(position).starts_with("\uFFFD");
    text += next_character(bytes, position);
    if (text.back() == kReplacementCharacter && !replacement) return std::nullopt;
  }
  return text;
}

/// The bytes that a text has in a code page; nothing if it has other characters.
std::optional<std::string> encode(std::u32string_view text, size_t page) {
  const bool lossy = code_pages()[page].lossy;
  std::string bytes;
  for (const char32_t c : text) {
    int byte = c < 0x80 ? static_cast<int>(c) : upper_half_byte(page, c);
    if (lossy && c == 0x1A) byte = -1;
    if (lossy && c == kReplacementCharacter) byte = 0x1A;
    if (byte < 0) return std::nullopt;
    bytes += static_cast<char>(byte);
  }
  return bytes;
}

/// What the text is if it was UTF-8 read in this code page.
std::optional<std::u32string> reread(std::u32string_view text, size_t page) {
  auto bytes = encode(text, page);
  if (!bytes) return std::nullopt;
  if (code_pages()[page].spaces_may_be_lost) bytes = restore_no_break_spaces(*bytes);
  if (code_pages()[page].lossy) bytes = replace_lossy_sequences(*bytes);
  return decode(*bytes);
}

// ---- Parts of a text

/// The length of what looks like one misread UTF-8 sequence at `position`; 0 if nothing does.
size_t misread_length(std::u32string_view text, size_t position) {
  const uint32_t first = mojibake_classes(text[position]);
  const size_t length = (first & kFirstOfTwo) != 0     ? 2
                        : (first & kFirstOfThree) != 0 ? 3
                        : (first & kFirstOfFour) != 0  ? 4
                                                       : 0;
  if (length == 0 || position + length > text.size()) return 0;
  for (size_t i = position + 1; i < position + length; ++i) {
    if ((mojibake_classes(text[i]) & kContinuation) == 0) return 0;
  }
  return length;
}

/// Inside a larger garble, repairing a few characters would make things worse.
bool follows_garble(std::u32string_view text, size_t position) {
  if (position == 0) return false;
  return (mojibake_classes(text[position - 1]) & (kContinuation | kPlainContinuation)) == kContinuation;
}

size_t misread_run_length(std::u32string_view text, size_t start) {
  if (follows_garble(text, start)) return 0;
  size_t end = start;
  while (end < text.size()) {
    const size_t length = misread_length(text, end);
    if (length == 0) break;
    end += length;
  }
  return end - start;
}

/// Repairs each run of misread sequences by itself. A run that is the whole text was tried before.
std::u32string repair_parts(std::u32string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (size_t position = 0; position < text.size();) {
    const size_t length = misread_run_length(text, position);
    const auto run = text.substr(position, std::max(length, size_t{1}));
    const bool repairable = length > 0 && length < text.size() && looks_misread(run);
    out += repairable ? repair_mojibake(std::u32string(run)) : run;
    position += run.size();
  }
  return out;
}

std::u32string read_c1_as_windows_1252(std::u32string text) {
  for (char32_t& c : text) {
    if (c >= 0x80 && c <= 0x9F) c = from_windows_1252(c);
  }
  return text;
}

/// One step of repair for a text that looks misread.
std::u32string repair_once(const std::u32string& text) {
  for (size_t page = 0; page < kCodePages; ++page) {
    if (auto fixed = reread(text, page)) return *std::move(fixed);
  }
  auto fixed = repair_parts(text);
  return fixed != text ? fixed : read_c1_as_windows_1252(text);
}

}  // namespace

bool looks_misread(std::u32string_view text) {
  int reach = 0;  // a rule that matches has a suspicious character among its first three
  for (size_t i = text.size(); i-- > 0; --reach) {
    if (is_suspicious(text[i])) reach = 3;
    if (reach > 0 && any_rule_matches(text, i)) return true;
  }
  return false;
}

std::u32string repair_mojibake(std::u32string text) {
  for (int round = 0; round < kMaxRounds && looks_misread(text); ++round) {
    auto repaired = repair_once(text);
    if (repaired == text) break;
    text = std::move(repaired);
  }
  return text;
}

}  // namespace contrastive::text
