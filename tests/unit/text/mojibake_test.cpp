// Expected texts are those of ftfy 6.3.1 (fix_text with its default settings), followed by lower-casing.

#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/text/clean_text.h"

namespace contrastive::text {
namespace {

struct Case {
  std::string_view text;
  std::string_view clean;
};

void expect_cleaned(const std::vector<Case>& cases) {
  for (const auto& [text, clean] : cases) EXPECT_EQ(clean_text(text), clean) << "text: " << text;
}

TEST(MojibakeTest, IsRepairedFromEveryCodePage) {
  expect_cleaned({
      {"sch\u00C3\u00B6n", "sch\u00F6n"},  // Latin-1
      {"\u00E2\u20AC\u0153quoted\u00E2\u20AC\u009D \u00E2\u20AC\u201D l\u00E2\u20AC\u2122\u00C3\u00A9t\u00C3\u00A9",
       "\"quoted\" \u2014 l'\u00E9t\u00E9"},  // Windows-1252
      {"\u0413\u00A9t\u0413\u00A9 \u0432\u201E\u2013 5 \u0432\u0402\u201D", "\u00E9t\u00E9 \u2116 5 \u2014"},  // 1251
      {"\u0139\u02DDi\u0139\u013Eek \u00E2\u20AC\u201C \u0139\u0081\u0102\u0142d\u0139\u015F",
       "\u017Ei\u017Eek \u2013 \u0142\u00F3d\u017A"},  // Windows-1250
      {"\u039E\u2014\u039E\u00BB\u039E\u0389\u039E\u038F\u039F\u201A \u03B2\u20AC\u2122",
       "\u03B7\u03BB\u03B9\u03BF\u03C2 '"},  // Windows-1253
      {"\u00C4\u00B0stanbul\u00E2\u20AC\u2122da g\u00C3\u00BCne\u00C5\u0178",
       "i\u0307stanbul'da g\u00FCne\u015F"},                                           // 1254
      {"\u0101\u20AC\u009CR\u00C4\u00ABga\u0101\u20AC\u00AF", "\"r\u012Bga\""},        // Windows-1257
      {"\u00C4\u008Ce\u0139\u0104tina\u00E2\u0080\u015A", "\u010De\u0161tina\u2026"},  // ISO 8859-2
      {"l\u201A\u00C4\u00F4\u221A\u00A9t\u221A\u00A9", "l'\u00E9t\u00E9"},             // MacRoman
      {"Gr\u251C\u2562\u251C\u0192e \u0393\u00C7\u00F4 \u251C\u2310t\u251C\u2310",
       "gr\u00F6\u00DFe \u2013 \u00E9t\u00E9"},  // 437
  });
}

TEST(MojibakeTest, IsRepairedInManyScripts) {
  expect_cleaned({
      {"\u00D9\u2026\u00D8\u00B1\u00D8\u00AD\u00D8\u00A8\u00D8\u00A7", "\u0645\u0631\u062D\u0628\u0627"},
      {"\u0420\u0457\u0421\u0402\u0420\u0451\u0420\u0406\u0420\u00B5\u0421\u201A",
       "\u043F\u0440\u0438\u0432\u0435\u0442"},
      {"\u00F0\u0178\u02DC\u20AC photo", "\U0001F600 photo"},
  });
}

TEST(MojibakeTest, IsRepairedWhenTextWasMisreadSeveralTimes) {
  expect_cleaned(
      {{"l\u00C3\u0192\u00C2\u00A2\u00C3\u00A2\u00E2\u20AC\u0161\u00C2\u00AC\u00C3\u00A2\u00E2\u20AC\u017E"
        "\u00C2\u00A2humanit\u00C3\u0192\u00C6\u2019\u00C3\u201A\u00C2\u00A9",
        "l'humanit\u00E9"}});
}

TEST(MojibakeTest, IsRepairedWhereASpaceTookThePlaceOfANoBreakSpace) {
  expect_cleaned({{"voil\u00C3  le travail, \u00C3  la mode, \u00C3 s vezes",
                   "voil\u00E0 le travail, \u00E0 la mode, \u00E0s vezes"}});
}

TEST(MojibakeTest, BecomesTheReplacementCharacterWhereBytesWereLost) {
  expect_cleaned({
      {"\u00E2\u20AC\u0153like this\u00E2\u20AC\uFFFD", "\"like this\uFFFD"},
      {"caf\u00C3? caf\u00C3\u00A9", "caf\uFFFD caf\u00E9"},
  });
}

TEST(MojibakeTest, IsRepairedInVariantsOfUtf8) {
  expect_cleaned({
      {"\u00ED\u00A0\u00BD\u00ED\u00B8\u20AC x", "\U0001F600 x"},  // surrogates in three-byte form
      {"A\u00C0\u0080 \u00C3\u00A9", "a \u00E9"},                  // Java's zero
      {"\u00C3\u00A9 \u00C0\n", "\u00E9"},                         // a final line feed passes for its second byte
  });
}

TEST(MojibakeTest, IsRepairedInPartsOfAText) {
  expect_cleaned({
      {"l\u2019\u00C3\u00A9t\u00C3\u00A9 chaud \u65E5\u672C", "l'\u00E9t\u00E9 chaud \u65E5\u672C"},
      {"\u201Ccaf\u00C3\u00A9\u201D cost \u00E2\u201A\u00AC5 \u65E5", "\"caf\u00E9\" cost \u20AC5 \u65E5"},
      {"\u0093quoted\u0094 \u65E5", "\"quoted\" \u65E5"},
  });
}

TEST(MojibakeTest, IsRepairedAfterItsEntitiesWereResolved) {
  expect_cleaned({{"&Atilde;&copy;", "\u00E9"}});
}

TEST(MojibakeTest, IsNotSeenInOrdinaryText) {
  expect_cleaned({
      {"\u00C5 \u00C3rea, S\u00C3O", "\u00E5 \u00E3rea, s\u00E3o"},
      {"AH\u00C5\u2122, the new sofa", "ah\u00E5\u2122, the new sofa"},
      {"\u00A9 2020 \u2014 caf\u00E9\u2122 \u20AC5", "\u00A9 2020 \u2014 caf\u00E9\u2122 \u20AC5"},
      {"\u00D4\u00F4\u00F4 VIDA MINHA", "\u00F4\u00F4\u00F4 vida minha"},
      {"\u65E5\u672C\u306E\u732B \u043A\u043E\u0448\u043A\u0430",
       "\u65E5\u672C\u306E\u732B \u043A\u043E\u0448\u043A\u0430"},
  });
}

}  // namespace
}  // namespace contrastive::text
