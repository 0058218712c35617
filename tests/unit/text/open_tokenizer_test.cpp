#include "contrastive/text/open_tokenizer.h"

#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"

#include "tests/support/paths.h"

namespace contrastive::text {
namespace {

using Ids = std::vector<int32_t>;

class OpenTokenizerTest : public ::testing::Test {
 protected:
  OpenTokenizerTest() { spec_.folder = folder_.path(); }

  void write(const std::string& name, const std::string& content) {
    std::ofstream(folder_.path() / name, std::ios::binary) << content;
  }

  Ids row_of(const std::string& text, size_t length = 6) const {
    Ids row(length, -1);
    open_tokenizer(spec_)->tokenize(text, row);
    return row;
  }

  std::string error() const {
    try {
      open_tokenizer(spec_);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return {};
  }

  test::TemporaryDirectory folder_;
  TokenizerSpec spec_;
};

/// <unk>, <s>, </s>, U+2581 c, U+2581 C, and ',' as a unigram model.
const std::string kSentencePieceModel(
    "\x0A\x0E\x0A\x05<unk>\x15\0\0\0\0\x18\x02"
    "\x0A\x0C\x0A\x03<s>\x15\0\0\0\0\x18\x03"
    "\x0A\x0D\x0A\x04</s>\x15\0\0\0\0\x18\x03"
    "\x0A\x0B\x0A\x04\xE2\x96\x81"
    "c\x15\0\0\x80\xBF"
    "\x0A\x0B\x0A\x04\xE2\x96\x81"
    "C\x15\0\0\x80\xBF"
    "\x0A\x08\x0A\x01,\x15\0\0\x80\xBF",
    16 + 14 + 15 + 13 + 13 + 10);

constexpr auto kVocabulary = "[PAD]\n[UNK]\n[CLS]\n[SEP]\ncat\nCat\n";

TEST_F(OpenTokenizerTest, TakesClipsBytePairsWithoutAName) {
  EXPECT_EQ(row_of("A cat."), (Ids{49406, 320, 2368, 269, 49407, 0}));
  spec_.clean = "canonicalize";
  EXPECT_EQ(row_of("A cat."), (Ids{49406, 320, 2368, 49407, 0, 0}));
}

TEST_F(OpenTokenizerTest, TakesWordPieceForBert) {
  write("vocab.txt", kVocabulary);
  spec_.vocab_size = 32000;
  spec_.hf_tokenizer_name = "bert-base-uncased";
  EXPECT_EQ(row_of("Cat"), (Ids{2, 4, 3, 0, 0, 0}));
  spec_.strip_sep_token = true;
  EXPECT_EQ(row_of("Cat"), (Ids{2, 4, 0, 0, 0, 0}));
  spec_.hf_tokenizer_name = "google-bert/bert-base-cased";
  EXPECT_EQ(row_of("Cat"), (Ids{2, 5, 0, 0, 0, 0}));
}

TEST_F(OpenTokenizerTest, TakesSentencePieceForSiglipAndT5) {
  write("spiece.model", kSentencePieceModel);
  spec_.vocab_size = 32000;
  spec_.hf_tokenizer_name = "timm/ViT-B-16-SigLIP";
  spec_.clean = "canonicalize";
  EXPECT_EQ(row_of("C,c"), (Ids{3, 0, 2, 1, 1, 1}));
  spec_.hf_tokenizer_name = "timm/ViT-B-16-SigLIP2-256";
  EXPECT_EQ(row_of("C"), (Ids{3, 2, 0, 0, 0, 0}));
  spec_.hf_tokenizer_name = "google/mt5-base";
  spec_.clean = "";
  EXPECT_EQ(row_of("C,"), (Ids{4, 5, 2, 0, 0, 0}));
  std::filesystem::rename(folder_.path() / "spiece.model", folder_.path() / "tokenizer.model");
  EXPECT_EQ(row_of("C,"), (Ids{4, 5, 2, 0, 0, 0}));
}

TEST_F(OpenTokenizerTest, NamesTheFilesThatItLookedFor) {
  const auto folder = folder_.path().string();
  spec_.hf_tokenizer_name = "timm/ViT-B-16-SigLIP";
  EXPECT_EQ(error(), "[tokenizer timm/ViT-B-16-SigLIP] it needs a file that was not found in \"" + folder +
                         "\": looked for spiece.model, tokenizer.model");
  spec_.hf_tokenizer_name = "bert-base-uncased";
  EXPECT_EQ(error(), "[tokenizer bert-base-uncased] it needs a file that was not found in \"" + folder +
                         "\": looked for vocab.txt");
}

TEST_F(OpenTokenizerTest, RefusesAModelWithFewerIdsThanTheTokenizer) {
  spec_.vocab_size = 1000;
  EXPECT_EQ(error(), "[tokenizer] vocab_size must be at least 49408, the ids of CLIP's tokenizer, but is 1000");
  write("vocab.txt", kVocabulary);
  spec_.hf_tokenizer_name = "bert-base-uncased";
  spec_.vocab_size = 5;
  EXPECT_EQ(error(), "[tokenizer] vocab_size must be at least 6, the ids of bert-base-uncased, but is 5");
  write("spiece.model", kSentencePieceModel);
  spec_.hf_tokenizer_name = "google/mt5-base";
  EXPECT_NE(error().find("vocab_size must be at least 6"), std::string::npos) << error();
}

TEST_F(OpenTokenizerTest, RefusesFieldsThatMakeNoSense) {
  spec_.clean = "upper";
  EXPECT_EQ(error(), "[tokenizer] clean must be lower, whitespace or canonicalize, but is \"upper\"");
  spec_.clean = "";
  spec_.strip_sep_token = true;
  EXPECT_EQ(error(), "[tokenizer] strip_sep_token is for BERT's tokenizers, but hf_tokenizer_name is \"\"");
  spec_.strip_sep_token = false;
  spec_.context_length = 1;
  EXPECT_EQ(error(), "[tokenizer] context_length must be at least 2, but is 1");
}

}  // namespace
}  // namespace contrastive::text
