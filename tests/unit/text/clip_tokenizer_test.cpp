#include "contrastive/text/clip_tokenizer.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <zlib.h>

#include "contrastive/core/error.h"

#include "tests/support/paths.h"

namespace contrastive::text {
namespace {

using namespace std::string_view_literals;
using Ids = std::vector<int32_t>;

constexpr int32_t kStart = ClipTokenizer::kStartOfText;
constexpr int32_t kEnd = ClipTokenizer::kEndOfText;

const ClipTokenizer& tokenizer() {
  static const ClipTokenizer instance(test::merges_file());
  return instance;
}

const ClipTokenizer& tokenizer(SpecialMarkers markers) {
  static const ClipTokenizer openai(test::merges_file(), {.special_markers = SpecialMarkers::openai});
  static const ClipTokenizer none(test::merges_file(), {.special_markers = SpecialMarkers::none});
  return markers == SpecialMarkers::openai ? openai : markers == SpecialMarkers::none ? none : tokenizer();
}

std::string repeat(std::string_view part, int times) {
  std::string text;
  for (int i = 0; i < times; ++i) text += part;
  return text;
}

/// The message of the error that `action` throws; empty if it throws none.
template <typename Error>
std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

struct Golden {
  std::string_view text;
  Ids ids;
};

/// Ids of the released Python tokenizer with ftfy 6.3.1.
const std::vector<Golden>& golden_rows() {
  static const std::vector<Golden> rows = {
      {"a photo of a cat.", {320, 1125, 539, 320, 2368, 269}},
      {"A PHOTO\tof\r\n a   Cat. ", {320, 1125, 539, 320, 2368, 269}},
      {"it's the dogs' bone, they'll say don't", {585, 568, 518, 3255, 262, 6195, 267, 889, 1342, 1451, 847, 713}},
      {"DON'T I'M WE'VE", {847, 713, 328, 880, 649, 1200}},
      {"rock 'n' roll 'tis", {2172, 262, 333, 262, 3341, 713, 533}},
      {"it’s “quoted”", {585, 568, 257, 27706, 257}},
      {"2021 was 3.14% of 1,000,000",
       {273, 271, 273, 272, 739, 274, 269, 272, 275, 260, 539, 272, 267, 271, 271, 271, 267, 271, 271, 271}},
      {"caf\u00E9 r\u00E9sum\u00E9 na\u00EFve", {15304, 29106, 7054, 4166, 1097, 35689, 563}},
      {"cafe\u0301 re\u0301sume\u0301 nai\u0308ve", {15304, 29106, 7054, 4166, 1097, 35689, 563}},
      {"Straße ÅNGSTRÖM İstanbul", {1894, 127, 253, 324, 23176, 10352, 807, 7255, 332, 328, 16384, 11231}},
      {"ΟΔΟΣ", {138, 123, 138, 112, 138, 123, 139, 480}},
      {"I ❤\uFE0F 🍕!!", {328, 1752, 31469, 748}},
      {"👨\u200D👩\u200D👧\u200D👦 family", {25023, 26304, 48938, 4244, 964, 355, 1315}},
      {"😀😀😀", {12832, 34503}},
      {"🇫🇷", {16223}},
      {"日本の猫", {39121, 44353, 21575, 163, 234, 360}},
      {"北京 2008", {161, 234, 245, 21078, 361, 273, 271, 271, 279}},
      {"고양이", {36216, 254, 31625, 239, 34746}},
      {"кошка", {27152, 13506, 141, 230, 27152, 27080}},
      {"قطة", {27585, 32050, 20915}},
      {"हिन्दी", {29446, 26721, 26090, 19389, 29552, 25751}},
      {"Tom &amp; Jerry", {2435, 261, 9164}},
      {"Tom &amp;amp; Jerry", {2435, 261, 9164}},
      {"<b>AT&amp;T</b>", {283, 321, 285, 536, 261, 339, 34308, 321, 285}},
      {"&copy2020 &eacute; &#39;x&#39; &#x1F600;", {5811, 273, 271, 273, 271, 4166, 262, 343, 262, 7334}},
      {"ﬁne ＦＵＬＬ\u3000ｗｉｄｔｈ", {3797, 1476, 23571}},
      {"schÃ¶n â€” l’Ã©tÃ©", {844, 7255, 333, 2005, 331, 262, 3459, 39694}},
      {"foo_bar-baz@example.com", {23435, 318, 2411, 268, 25268, 287, 6228, 269, 2464}},
      {"IMG_20160716_113957.JPG",
       {24157, 318, 273, 271, 272, 277, 271, 278, 272, 277, 318, 272, 272, 274, 280, 276, 278, 269, 36950}},
      {"x² ½ Ⅷ ①", {343, 41175, 33613, 158, 227, 371, 158, 239, 510}},
      {"zero\u200Bwidth nb\u00A0sp soft\u00ADhyphen\uFEFF",
       {5848, 9844, 23571, 6813, 4393, 3773, 22618, 1441, 745, 576}},
      {"\x1B[31mred\x1B[0m", {736}},
      {"a\0b\ac"sv, {5334}},
      {"supercalifragilisticexpialidocious", {1642, 2857, 13093, 2076, 5868, 26850, 835, 639, 38466}},
      {"!!!!!!!!!!!!", {11281, 2360}},
      {"…", {959}},
      {"… — – •", {959, 2005, 1224, 2701}},
      {"", {}},
      {" \t\n ", {}},
  };
  return rows;
}

TEST(ClipTokenizerTest, EqualsTheGoldenTable) {
  for (const auto& [text, ids] : golden_rows()) EXPECT_EQ(tokenizer().encode(text), ids) << "text: " << text;
}

TEST(ClipTokenizerTest, KeepsIdsWithoutAWordCache) {
  const ClipTokenizer uncached(test::merges_file(), {.word_cache_capacity = 0});
  for (const auto& [text, ids] : golden_rows()) EXPECT_EQ(uncached.encode(text), ids) << "text: " << text;
}

TEST(ClipTokenizerTest, FillsTheRowWithMarkersAndZeros) {
  std::vector<int32_t> row(10, -1);
  EXPECT_EQ(tokenizer().tokenize("a photo of a cat.", row), 8);
  EXPECT_EQ(row, (Ids{kStart, 320, 1125, 539, 320, 2368, 269, kEnd, 0, 0}));
}

TEST(ClipTokenizerTest, WritesOnlyTheMarkersOfAnEmptyText) {
  std::vector<int32_t> row(77, -1);
  EXPECT_EQ(tokenizer().tokenize("  ", row), 2);
  Ids expected(77, 0);
  expected[0] = kStart;
  expected[1] = kEnd;
  EXPECT_EQ(row, expected);
}

TEST(ClipTokenizerTest, FitsATextOfExactlyTheContextLength) {
  std::vector<int32_t> row(77, -1);
  EXPECT_EQ(tokenizer().tokenize(repeat("word ", 75), row, /*truncate=*/false), 77);
  EXPECT_EQ(row[75], 2653);
  EXPECT_EQ(row[76], kEnd);
}

TEST(ClipTokenizerTest, CutsLongTextAndKeepsTheEndMarker) {
  std::vector<int32_t> row(77, -1);
  EXPECT_EQ(tokenizer().tokenize(repeat("word ", 76), row), 77);
  EXPECT_EQ(row[0], kStart);
  EXPECT_EQ(row[75], 2653);
  EXPECT_EQ(row[76], kEnd);
}

TEST(ClipTokenizerTest, CutsInsideAWord) {
  const std::string word(500, 'a');
  const auto ids = tokenizer().encode(word);
  ASSERT_EQ(ids.size(), 63U);
  EXPECT_EQ(ids[0], 23126);
  EXPECT_EQ(ids[1], 23126);
  std::vector<int32_t> row(77);
  EXPECT_EQ(tokenizer().tokenize(word, row), 65);
  EXPECT_EQ(row[64], kEnd);
  row.resize(4);
  EXPECT_EQ(tokenizer().tokenize(word, row), 4);
  EXPECT_EQ(row, (Ids{kStart, 23126, 23126, kEnd}));
}

TEST(ClipTokenizerTest, RefusesLongTextWhenItMayNotCut) {
  std::vector<int32_t> row(77);
  const auto message =
      message_of<DataError>([&] { tokenizer().tokenize(repeat("word ", 76), row, /*truncate=*/false); });
  EXPECT_EQ(message,
            "[tokenize] text \"word word word word word word word word ...\" must have at most 77 ids with start "
            "and end, but has 78");
}

TEST(ClipTokenizerTest, RefusesARowWithoutRoomForTheMarkers) {
  std::vector<int32_t> row(1);
  EXPECT_EQ(message_of<ConfigError>([&] { tokenizer().tokenize("a", row); }),
            "[tokenize] context length must be at least 2, but is 1");
}

TEST(ClipTokenizerTest, FitsTheMarkersIntoAContextOfTwo) {
  std::vector<int32_t> row(2);
  EXPECT_EQ(tokenizer().tokenize("a photo", row), 2);
  EXPECT_EQ(row, (Ids{kStart, kEnd}));
}

TEST(ClipTokenizerTest, HonoursTheMarkersOfOpenClip) {
  EXPECT_EQ(tokenizer().encode("<start_of_text> hello <end_of_text>"), (Ids{kStart, 3306, kEnd}));
  EXPECT_EQ(tokenizer().encode("<START_of_text>hello&lt;end_of_text&gt;"), (Ids{kStart, 3306, kEnd}));
  EXPECT_EQ(tokenizer().encode("＜end_of_text＞"), (Ids{kEnd}));
}

TEST(ClipTokenizerTest, HonoursTheMarkersOfOpenAi) {
  const auto& openai = tokenizer(SpecialMarkers::openai);
  EXPECT_EQ(openai.encode("<|startoftext|> hello <|endoftext|>"), (Ids{kStart, 3306, kEnd}));
  EXPECT_EQ(openai.decode(Ids{kStart, 3306, kEnd}), "<|startoftext|>hello <|endoftext|>");
}

TEST(ClipTokenizerTest, TakesTheOtherMarkersAsText) {
  for (const auto& [markers, text] : {std::pair(SpecialMarkers::open_clip, "<|startoftext|> <|endoftext|>"),
                                      std::pair(SpecialMarkers::openai, "<start_of_text> <end_of_text>"),
                                      std::pair(SpecialMarkers::none, "<|startoftext|> <|endoftext|>"),
                                      std::pair(SpecialMarkers::none, "<start_of_text> <end_of_text>")}) {
    const auto ids = tokenizer(markers).encode(text);
    EXPECT_GT(ids.size(), 2U);
    EXPECT_TRUE(std::all_of(ids.begin(), ids.end(), [](int32_t id) { return id < kStart; })) << text;
  }
}

TEST(ClipTokenizerTest, EqualsTheOtherModesOnTextWithoutMarkers) {
  for (const auto& [text, ids] : golden_rows()) {
    EXPECT_EQ(tokenizer(SpecialMarkers::none).encode(text), ids) << "text: " << text;
    EXPECT_EQ(tokenizer(SpecialMarkers::openai).encode(text), ids) << "text: " << text;
  }
}

TEST(ClipTokenizerTest, SplitsContractionsAlsoBeforeALongS) {
  // U+017F equals s when case is ignored: ' and it are one piece. Its bytes are C5 BF.
  const auto ids = tokenizer().encode("it'\u017F");
  EXPECT_EQ(ids[0], 585);
  EXPECT_EQ(tokenizer().decode(ids), "it '\u017F ");
}

TEST(ClipTokenizerTest, DropsTheIotaSubscriptAsTheReferenceDoes) {
  EXPECT_EQ(tokenizer().encode("cat\u0345dog"), tokenizer().encode("cat dog"));
}

TEST(ClipTokenizerTest, DecodesIdsWithSpacesAfterWords) {
  EXPECT_EQ(tokenizer().decode(Ids{kStart, 320, 1125, 539, 320, 2368, 269, kEnd}),
            "<start_of_text>a photo of a cat . <end_of_text>");
  EXPECT_EQ(tokenizer().decode(Ids{0, 255, 256}), "!\uFFFD! ");  // id 255 is the byte 0xAD alone
  EXPECT_EQ(tokenizer().decode({}), "");
}

TEST(ClipTokenizerTest, DecodesEncodedWords) {
  constexpr unsigned kSeed = 20210226;
  std::mt19937 random(kSeed);
  const std::vector<std::string> alphabet = {"a", "b", "e", "q", "z", "\u00E9", "\u0436", "\u732B", "\U00020000"};
  for (int i = 0; i < 500; ++i) {
    std::string text;
    for (auto words = 1 + random() % 5; words > 0; --words) {
      for (auto letters = 1 + random() % 12; letters > 0; --letters) text += alphabet[random() % alphabet.size()];
      text += ' ';
    }
    EXPECT_EQ(tokenizer().decode(tokenizer().encode(text)), text) << "seed " << kSeed;
  }
}

TEST(ClipTokenizerTest, RefusesIdsOutsideTheVocabulary) {
  for (const int32_t id : {-1, 49408}) {
    EXPECT_EQ(message_of<DataError>([&] {
                tokenizer().decode(Ids{320, id});
              }),
              "[ClipTokenizer] id must be in [0, 49408), but is " + std::to_string(id));
  }
}

TEST(ClipTokenizerTest, ReplacesInvalidUtf8) {
  EXPECT_EQ(tokenizer().encode("a \xFF photo \xE2\x82"), tokenizer().encode("a \uFFFD photo \uFFFD"));
  EXPECT_EQ(tokenizer().decode(tokenizer().encode("\xFF")), "\uFFFD ");
}

TEST(ClipTokenizerTest, GivesManyThreadsTheSameIds) {
  std::vector<std::string> texts;
  for (const auto& row : golden_rows()) texts.emplace_back(row.text);
  for (int i = 0; i < 300; ++i) texts.push_back("zq" + std::to_string(i) + "xv wq" + std::string(i % 7, 'k'));
  std::vector<Ids> expected;
  for (const auto& text : texts) expected.push_back(tokenizer().encode(text));

  // A cache this small is emptied again and again while others read it.
  const ClipTokenizer shared(test::merges_file(), {.word_cache_capacity = 32});
  std::vector<int> differences(4);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < differences.size(); ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < 4 * texts.size(); ++i) {
        const size_t row = (i + t * 97) % texts.size();
        differences[t] += shared.encode(texts[row]) != expected[row];
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(differences, std::vector<int>(4, 0));
}

TEST(ClipTokenizerTest, CanBeMoved) {
  ClipTokenizer first(test::merges_file());
  const ClipTokenizer second = std::move(first);
  EXPECT_EQ(second.encode("a photo"), (Ids{320, 1125}));
}

TEST(ClipTokenizerTest, RefusesANegativeCacheCapacity) {
  EXPECT_EQ(message_of<ConfigError>([] { ClipTokenizer(test::merges_file(), {.word_cache_capacity = -1}); }),
            "[ClipTokenizer] word_cache_capacity must be at least 0, but is -1");
}

TEST(ClipTokenizerTest, RefusesACleaningThatKeepsUpperCase) {
  EXPECT_EQ(message_of<ConfigError>([] { ClipTokenizer(test::merges_file(), {.cleaning = Cleaning::whitespace}); }),
            "[ClipTokenizer] cleaning must be lower or canonicalize, but keeps upper case");
}

TEST(ClipTokenizerTest, DropsPunctuationWhenCanonicalizing) {
  const ClipTokenizer canonical(test::merges_file(), {.cleaning = Cleaning::canonicalize});
  EXPECT_EQ(canonical.encode("A photo, of_a CAT."), tokenizer().encode("a photo of a cat"));
}

TEST(ClipTokenizerTest, IsATokenizer) {
  const Tokenizer& base = tokenizer();
  EXPECT_EQ(base.vocab_size(), 49408);
  EXPECT_EQ(base.encode("a photo"), (Ids{320, 1125}));
}

class MergesFileTest : public ::testing::Test {
 protected:
  std::filesystem::path write(const std::string& content) {
    const auto file = folder_.path() / "merges.txt";
    std::ofstream(file, std::ios::binary) << content;
    return file;
  }

  std::string error_on(const std::filesystem::path& file) {
    return message_of<DataError>([&] { ClipTokenizer tokenizer(file); });
  }

  /// What the merges file holds, unpacked.
  static std::string plain_text() {
    const std::unique_ptr<gzFile_s, decltype(&gzclose)> stream(gzopen(test::merges_file().c_str(), "rb"), &gzclose);
    std::string text(4 << 20, '\0');
    const int size = gzread(stream.get(), text.data(), static_cast<unsigned>(text.size()));
    text.resize(size > 0 ? static_cast<size_t>(size) : 0);
    return text;
  }

  test::TemporaryDirectory folder_;
};

TEST_F(MergesFileTest, MayBePlain) {
  EXPECT_EQ(ClipTokenizer(write(plain_text())).encode("a photo of a cat."), (Ids{320, 1125, 539, 320, 2368, 269}));
}

TEST_F(MergesFileTest, MustExist) {
  const auto file = folder_.path() / "none.gz";
  EXPECT_EQ(error_on(file), "[merges file " + file.string() + "] can't be opened");
}

TEST_F(MergesFileTest, MustNotBeAFolder) {
  EXPECT_NE(error_on(folder_.path()).find("can't be"), std::string::npos) << error_on(folder_.path());
}

TEST_F(MergesFileTest, MustHaveTheKnownText) {
  const auto file = write("#version: 0.2\ni n\nt h\n");
  EXPECT_EQ(error_on(file).rfind("[merges file " + file.string() +
                                     "] sha256 of its text must be "
                                     "67603cfda2e032ad77b5f8808af37789d590db664b26df8705d2bf8b3c553fc8, but is ",
                                 0),
            0U)
      << error_on(file);
}

TEST_F(MergesFileTest, MustNotHaveOneByteChanged) {
  auto text = plain_text();
  text[text.size() / 2] = 'x';
  EXPECT_NE(error_on(write(text)).find("sha256 of its text must be"), std::string::npos);
}

TEST_F(MergesFileTest, MustNotBeLonger) {
  const auto file = write(std::string(8 << 20, 'a'));
  EXPECT_EQ(error_on(file), "[merges file " + file.string() +
                                "] must have 3194984 bytes of text, but has more: it is not CLIP's merges file");
}

TEST_F(MergesFileTest, MustNotBeADamagedArchive) {
  std::ifstream in(test::merges_file(), std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (!bytes.starts_with("\x1F\x8B")) GTEST_SKIP() << "the merges file here is plain text";
  EXPECT_NE(error_on(write(bytes.substr(0, bytes.size() / 2))), "");
  bytes.replace(bytes.size() / 2, 64, std::string(64, '\xFF'));
  EXPECT_NE(error_on(write(bytes)), "");
}

}  // namespace
}  // namespace contrastive::text
