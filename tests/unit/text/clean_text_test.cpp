// Expected texts follow the published tables: ftfy's documentation, HTML's character references, Unicode's case
// mappings.

#include "contrastive/text/clean_text.h"

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

namespace contrastive::text {
namespace {

using namespace std::string_view_literals;

struct Case {
  std::string_view text;
  std::string_view clean;
};

void expect_cleaned(const std::vector<Case>& cases) {
  for (const auto& [text, clean] : cases) EXPECT_EQ(clean_text(text), clean) << "text: " << text;
}

TEST(CleanTextTest, CollapsesEveryKindOfWhiteSpace) {
  expect_cleaned({
      {"", ""},
      {" \t\r\n\f ", ""},
      {"  a \t photo\r\n\r\nof  ", "a photo of"},
      {"a\u00A0b\u1680c\u2003d\u2028e\u2029f\u202Fg\u205Fh\u3000i\u0085", "a b c d e f g h i\u2026"},
      {"zero\u200Bwidth", "zero\u200Bwidth"},
  });
}

TEST(CleanTextTest, StraightensQuotes) {
  expect_cleaned({
      {"it\u2019s \u201Cquoted\u201D", "it's \"quoted\""},
      {"\u2018\u201A\u201B\u02BC \u201E\u201F", "'''' \"\""},
      {"\u2032 \u2033 \u02C8 \u00AB", "\u2032 \u2033 \u02C8 \u00AB"},
  });
}

TEST(CleanTextTest, TakesLatinLigaturesApart) {
  expect_cleaned({
      {"\uFB02u\uFB03e\uFB06 \uFB00 \uFB01 \uFB04", "fluffiest ff fi ffl"},
      {"\uFB05", "\u017Ft"},
      {"\u0132 \u0133 \u0149", "ij ij 'n"},
      {"\u01C4\u01C5\u01C6 \u01C7\u01C8\u01C9 \u01CA\u01CB\u01CC \u01F1\u01F2\u01F3",
       "d\u017Ed\u017Ed\u017E ljljlj njnjnj dzdzdz"},
      {"\u00C6\u0152", "\u00E6\u0153"},
  });
}

TEST(CleanTextTest, GivesFullAndHalfWidthFormsTheirStandardWidth) {
  expect_cleaned({
      {"\uFF2C\uFF2F\uFF35\uFF24\u3000\uFF2E\uFF2F\uFF29\uFF33\uFF25\uFF33", "loud noises"},
      {"\uFF35\uFF80\uFF70\uFF9D", "u\u30BF\u30FC\u30F3"},  // half-width katakana
      {"\uFF76\uFF9E", "\u30AC"},                           // the voicing mark joins by NFC
      {"\uFFA1\uFFC2", "\uAC00"},                           // half-width Hangul joins too
      {"\uFFE5\uFFE6\uFFE9", "\u00A5\u20A9\u2190"},
  });
}

TEST(CleanTextTest, ReadsC1ControlsAsWindows1252) {
  expect_cleaned({
      {"\u0080 \u0092 \u0085", "\u20AC ' \u2026"},
      {"\u0081\u008D\u008F\u0090\u009D", "\u0081\u008D\u008F\u0090\u009D"},  // unassigned in Windows-1252
  });
}

TEST(CleanTextTest, RemovesControlCharactersButKeepsJoiners) {
  expect_cleaned({
      {"a\0b\a c\x1F\x7F"sv, "ab c"},
      {"a\vb", "ab"},
      {"\uFEFFa\u206Ab\uFFFCc\uFFF9", "abc"},
      {"a\u200Cb\u200Dc\u200Ed", "a\u200Cb\u200Dc\u200Ed"},
  });
}

TEST(CleanTextTest, RemovesTerminalEscapes) {
  expect_cleaned({
      {"\x1B[36;44mI'm blue\x1B[0m", "i'm blue"},
      {"\x1B[m;\x1B[1", ";[1"},
      {"\x1B[\u0663mx", "x"},  // any decimal digit counts
  });
}

TEST(CleanTextTest, UnescapesHtmlTwice) {
  expect_cleaned({
      {"Tom &amp; Jerry", "tom & jerry"},
      {"Tom &amp;amp; Jerry", "tom & jerry"},
      {"<b>AT&amp;amp;amp;T</b>", "<b>at&amp;t</b>"},
      {"&copy2020 &notit; &NotEqualTilde;", "\u00A92020 \u00ACit; \u2242\u0338"},
      {"&#39;x&#39; &#x1F600; &#X41 &#66", "'x' \U0001F600 a b"},
      {"a & b && c &", "a & b && c &"},
      {"&nosuchname; &#; &#x; &#xg;", "&nosuchname; &#; &#x; &#xg;"},
      {"&CounterClockwiseContourIntegral;", "\u2233"},
  });
}

TEST(CleanTextTest, ReplacesReferencesToWhatIsNoCharacter) {
  expect_cleaned({
      {"<&#0;&#xD800;&#x110000;&#99999999999999999999;", "<\uFFFD\uFFFD\uFFFD\uFFFD"},
      {"<&#1;&#xB;&#xFFFE;&#x1FFFF;&#xFDD0;&#127;x", "<x"},
      {"<&#x80;&#146;&#x81;", "<\u20AC\u2019\u0081"},
  });
}

TEST(CleanTextTest, UnescapesNamesInCapitalsOnlyWithoutMarkup) {
  expect_cleaned({
      {"P&EACUTE;REZ &NTILDE; BUNDESSTRA&SZLIG;E", "p\u00E9rez \u00F1 bundesstrasse"},
      {"&nTILDE; &NAPOS;", "&ntilde; 'n"},
      {"<i> &NTILDE;", "<i> &ntilde;"},
  });
}

TEST(CleanTextTest, RepairsEntitiesLineByLineUntilMarkupAppears) {
  expect_cleaned({
      {"&EACUTE;\n<\n&EACUTE;", "\u00E9 < &eacute;"},
      {"&rsquo;", "'"},
      {"<&rsquo;", "<\u2019"},  // unescaped after the quotes were straightened
  });
}

TEST(CleanTextTest, ComposesCharacters) {
  expect_cleaned({
      {"cafe\u0301", "caf\u00E9"},
      {"a\u0301\u0323", "\u1EA1\u0301"},
      {"\u1100\u1161\u11A8", "\uAC01"},
      {"\u212B \u2126 \u0958", "\u00E5 \u03C9 \u0915\u093C"},
  });
}

TEST(CleanTextTest, LowerCasesByTheFullUnicodeRules) {
  expect_cleaned({
      {"STRASSE \u1E9E \u00C5NGSTR\u00D6M", "strasse \u00DF \u00E5ngstr\u00F6m"},
      {"\u0130stanbul", "i\u0307stanbul"},
      {"\u039F\u0394\u039F\u03A3", "\u03BF\u03B4\u03BF\u03C2"},
      {"\u03A3 \u0391\u03A3\u0391 \u0391\u03A3. \u0391\u03A3.\u0391",
       "\u03C3 \u03B1\u03C3\u03B1 \u03B1\u03C2. \u03B1\u03C3.\u03B1"},
      {"\u2167 \u24B6 \u017F", "\u2177 \u24D0 \u017F"},
  });
}

TEST(CleanTextTest, ReplacesInvalidUtf8OncePerMaximalSubpart) {
  expect_cleaned({
      // Table 3-8 of the Unicode standard.
      {"a\xF1\x80\x80\xE1\x80\xC2"
       "b\x80"
       "c\x80\xBF"
       "d",
       "a\uFFFD\uFFFD\uFFFDb\uFFFDc\uFFFD\uFFFDd"},
      {"\xC0\xAF \xF5 \xE2\x82", "\uFFFD\uFFFD \uFFFD \uFFFD"},
  });
}

TEST(CleanTextTest, JoinsSurrogatePairs) {
  expect_cleaned({
      {"\xED\xA0\xBD\xED\xB8\x80", "\U0001F600"},
      {"\xED\xB8\x80\xED\xA0\xBD", "\uFFFD\uFFFD"},
  });
}

TEST(CleanTextTest, KeepsCaseAndPunctuationOnlyWhenAsked) {
  constexpr auto kText = " A_b-C,  \u00C9t\u00E9&amp;\u201Cx\u201D! \u2014_"sv;
  EXPECT_EQ(clean_text(kText, Cleaning::none), kText);
  EXPECT_EQ(clean_text(kText, Cleaning::whitespace), "A_b-C, \u00C9t\u00E9&\"x\"! \u2014_");
  EXPECT_EQ(clean_text(kText, Cleaning::lower), "a_b-c, \u00E9t\u00E9&\"x\"! \u2014_");
  EXPECT_EQ(clean_text(kText, Cleaning::canonicalize), "a bc \u00E9t\u00E9x \u2014");
}

TEST(CleanTextTest, CleansPlainAsciiByTheSameRules) {
  constexpr auto kText = " A_b-C, \t _x_ ~!@#$%^*()+={}[]|\\:;\"'<>,.?/` 9 "sv;
  EXPECT_EQ(clean_text(kText, Cleaning::whitespace), "A_b-C, _x_ ~!@#$%^*()+={}[]|\\:;\"'<>,.?/` 9");
  EXPECT_EQ(clean_text(kText, Cleaning::lower), "a_b-c, _x_ ~!@#$%^*()+={}[]|\\:;\"'<>,.?/` 9");
  EXPECT_EQ(clean_text(kText, Cleaning::canonicalize), "a bc x 9");
  EXPECT_EQ(clean_text("._", Cleaning::canonicalize), "");
}

/// A quadratic step would take minutes here.
TEST(CleanTextTest, StaysFastOnHostileText) {
  constexpr int kRepeats = 100'000;
  const auto repeat = [](std::string_view part) {
    std::string text;
    for (int i = 0; i < kRepeats; ++i) text += part;
    return text;
  };
  const auto start = std::chrono::steady_clock::now();
  for (const auto part : {"&amp;", "amp;", "&", "&#x3", "\u0301\u0323", "\x1B[1;", "\u03A3.", "a", "\n<", "&#38;#3",
                          "\u00C3\u00A9", "\u00C3\u0192\u00C6\u2019", "\u00C2 \u00C3\u0080"}) {
    clean_text("&" + repeat(part));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
}

}  // namespace
}  // namespace contrastive::text
