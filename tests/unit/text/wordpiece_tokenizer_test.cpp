// Expected pieces follow the description and the examples of the BERT release.

#include "contrastive/text/wordpiece_tokenizer.h"

#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"

#include "tests/support/errors.h"
#include "tests/support/paths.h"

namespace contrastive::text {
namespace {

using Ids = std::vector<int32_t>;

constexpr int32_t kPad = 0;
constexpr int32_t kUnk = 1;
constexpr int32_t kCls = 2;
constexpr int32_t kSep = 3;

class WordPieceTokenizerTest : public ::testing::Test {
 protected:
  std::filesystem::path write(const std::string& content) {
    const auto file = folder_.path() / "vocab.txt";
    std::ofstream(file, std::ios::binary) << content;
    return file;
  }

  WordPieceTokenizer tokenizer(const WordPieceOptions& options = {}) {
    // ids:        0      1      2      3    4   5    6     7  8    9   10   11 12  13   14   15
    return WordPieceTokenizer(
        write("[PAD]\n[UNK]\n[CLS]\n[SEP]\nun\n##aff\n##able\na\ncat\nthe\n##s\n,\n'\ncafe\nCat\n\u732B\n"), options);
  }

  test::TemporaryDirectory folder_;
};

TEST_F(WordPieceTokenizerTest, TakesTheLongestPieces) {
  EXPECT_EQ(tokenizer().encode("unaffable cats"), (Ids{4, 5, 6, 8, 10}));
}

TEST_F(WordPieceTokenizerTest, MakesAWordUnknownThatCannotBeSpelled) {
  EXPECT_EQ(tokenizer().encode("a caty cat"), (Ids{7, kUnk, 8}));
  EXPECT_EQ(tokenizer().encode("a" + std::string(100, 's')), (Ids{kUnk}));
  Ids longest(100, 10);
  longest[0] = 7;
  EXPECT_EQ(tokenizer().encode("a" + std::string(99, 's')), longest);
}

TEST_F(WordPieceTokenizerTest, SplitsPunctuationAndChineseCharacters) {
  EXPECT_EQ(tokenizer().encode("the cat's,a\u732Ba"), (Ids{9, 8, 12, kUnk, 11, 7, 15, 7}));
}

TEST_F(WordPieceTokenizerTest, LowersCaseAndDropsAccents) {
  EXPECT_EQ(tokenizer().encode("THE CAF\u00C9 cafe\u0301"), (Ids{9, 13, 13}));
  WordPieceOptions cased;
  cased.lower_case = false;
  EXPECT_EQ(tokenizer(cased).encode("Cat cat caf\u00E9"), (Ids{14, 8, kUnk}));
}

TEST_F(WordPieceTokenizerTest, DropsControlsAndInvalidUtf8) {
  EXPECT_EQ(tokenizer().encode("c\x01"
                               "a\xFFt\u200B\t a\r\n"),
            (Ids{8, 7}));
}

TEST_F(WordPieceTokenizerTest, ReadsSpecialPiecesInAText) {
  EXPECT_EQ(tokenizer().encode("cat[SEP]a [CLS] [sep]"), (Ids{8, kSep, 7, kCls, kUnk, kUnk, kUnk}));
}

TEST_F(WordPieceTokenizerTest, AddsClassTokenSeparatorAndPadding) {
  Ids row(6, -1);
  EXPECT_EQ(tokenizer().tokenize("a cat", row), 4);
  EXPECT_EQ(row, (Ids{kCls, 7, 8, kSep, kPad, kPad}));
  row.resize(3);
  EXPECT_EQ(tokenizer().tokenize("a cat", row), 3);
  EXPECT_EQ(row, (Ids{kCls, 7, kSep}));
}

TEST_F(WordPieceTokenizerTest, BlanksTheSeparatorForClipa) {
  const auto clipa = tokenizer(clipa_tokenizer_options());
  Ids row(5, -1);
  EXPECT_EQ(clipa.tokenize("a cat", row), 3);
  EXPECT_EQ(row, (Ids{kCls, 7, 8, kPad, kPad}));
  row.resize(3);
  EXPECT_EQ(clipa.tokenize("a cat", row), 2);
  EXPECT_EQ(row, (Ids{kCls, 7, kPad}));
}

TEST_F(WordPieceTokenizerTest, GivesTheSeparatorsPlaceToTheTextForLit) {
  const auto lit = tokenizer(lit_wordpiece_options());
  Ids row(3, -1);
  EXPECT_EQ(lit.tokenize("a cat the", row), 3);
  EXPECT_EQ(row, (Ids{kCls, 7, 8}));
}

TEST_F(WordPieceTokenizerTest, RefusesTextThatDoesNotFit) {
  Ids row(3);
  EXPECT_EQ(test::message_of<DataError>([&] { tokenizer().tokenize("a cat", row, /*truncate=*/false); }),
            "[tokenize] text \"a cat\" must have at most 3 ids with start and end, but has 4");
  row.resize(1);
  EXPECT_EQ(test::message_of<ConfigError>([&] { tokenizer().tokenize("a", row); }),
            "[tokenize] context length must be at least 2, but is 1");
}

TEST_F(WordPieceTokenizerTest, DecodesPiecesIntoWords) {
  EXPECT_EQ(tokenizer().decode(Ids{kCls, 4, 5, 6, 8, 10, kSep}), "[CLS] unaffable cats [SEP]");
  EXPECT_EQ(test::message_of<DataError>([&] { tokenizer().decode(Ids{16}); }),
            "[vocabulary " + (folder_.path() / "vocab.txt").string() + "] id must be in [0, 16), but is 16");
}

TEST_F(WordPieceTokenizerTest, RefusesAVocabularyThatRepeatsOrLacksAPiece) {
  const auto file = write("[PAD]\n[UNK]\n[CLS]\n[SEP]\ncat\ncat\n");
  const auto prefix = "[vocabulary " + file.string() + "] ";
  EXPECT_EQ(test::message_of<DataError>([&] { WordPieceTokenizer tokenizer(file); }),
            prefix + "line 6 repeats the piece \"cat\" of line 5");
  write("[PAD]\r\n[UNK]\r\n[CLS]\r\ncat\r\n");
  EXPECT_EQ(test::message_of<DataError>([&] { WordPieceTokenizer tokenizer(file); }),
            prefix + "it must have the piece [SEP], but has not (4 pieces)");
  write("");
  EXPECT_EQ(test::message_of<DataError>([&] { WordPieceTokenizer tokenizer(file); }),
            prefix + "it must have the piece [PAD], but has not (0 pieces)");
}

TEST_F(WordPieceTokenizerTest, RefusesAMissingVocabulary) {
  EXPECT_NE(
      test::message_of<DataError>([&] { WordPieceTokenizer tokenizer(folder_.path() / "none.txt"); }).find("none.txt"),
      std::string::npos);
}

}  // namespace
}  // namespace contrastive::text
