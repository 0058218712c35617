// The models are written here, piece by piece, so that the best split can be told by adding scores.

#include "contrastive/text/sentencepiece_tokenizer.h"

#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"

#include "tests/support/errors.h"
#include "tests/support/paths.h"

namespace contrastive::text {
namespace {

using Ids = std::vector<int32_t>;

// ---- Protocol buffers

std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes + static_cast<char>(value);
}

std::string number_field(uint64_t number, uint64_t value) {
  return varint(number << 3) + varint(value);
}

std::string bytes_field(uint64_t number, const std::string& bytes) {
  return varint(number << 3 | 2) + varint(bytes.size()) + bytes;
}

enum Type { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4 };

std::string piece(const std::string& text, float score, int type = kNormal) {
  std::string bits(4, '\0');
  std::memcpy(bits.data(), &score, bits.size());
  return bytes_field(1,
                     bytes_field(1, text) + varint(2 << 3 | 5) + bits + number_field(3, static_cast<uint64_t>(type)));
}

std::string special_pieces() {
  return piece("<unk>", 0, kUnknown) + piece("<s>", 0, kControl) + piece("</s>", 0, kControl);
}

/// U+2581, which stands for a space.
const std::string kSpace = "\u2581";

std::string trainer(uint64_t type) {
  return bytes_field(2, number_field(3, type));
}

/// ids from 3: _a, _, c, a, t, cat, _cat, -, --
std::string unigram_model() {
  return special_pieces() + piece(kSpace + "a", -1) + piece(kSpace, -2) + piece("c", -3) + piece("a", -3) +
         piece("t", -3) + piece("cat", -4) + piece(kSpace + "cat", -5) + piece("-", -2) + piece("--", -5) + trainer(1);
}

/// ids from 3: _, a, c, t, at, cat, _cat. A merge with a higher score comes first.
std::string byte_pair_model() {
  return special_pieces() + piece(kSpace, -9) + piece("a", -9) + piece("c", -9) + piece("t", -9) + piece("at", -1) +
         piece("cat", -2) + piece(kSpace + "cat", -3) + trainer(2);
}

class SentencePieceTokenizerTest : public ::testing::Test {
 protected:
  std::filesystem::path write(const std::string& content) {
    const auto file = folder_.path() / "spiece.model";
    std::ofstream(file, std::ios::binary) << content;
    return file;
  }

  SentencePieceTokenizer open(const std::string& model, const SentencePieceOptions& options = {}) {
    return SentencePieceTokenizer(write(model), options);
  }

  /// The error on a model, without the part that names the file.
  template <typename E = DataError>
  std::string error_on(const std::string& model, const SentencePieceOptions& options = {}) {
    const auto message = test::message_of<E>([&] { open(model, options); });
    const auto prefix = "[SentencePiece model " + (folder_.path() / "spiece.model").string() + "] ";
    return message.starts_with(prefix) ? message.substr(prefix.size()) : message;
  }

  test::TemporaryDirectory folder_;
};

TEST_F(SentencePieceTokenizerTest, FindsTheBestSplitOfAUnigramModel) {
  const auto tokenizer = open(unigram_model());
  EXPECT_EQ(tokenizer.encode("a cat"), (Ids{3, 9}));
  EXPECT_EQ(tokenizer.encode(" tac  -- "), (Ids{4, 7, 6, 5, 4, 10, 10}));  // -2 - 2 is better than -5
  EXPECT_EQ(tokenizer.encode(""), Ids{});
  EXPECT_EQ(tokenizer.vocab_size(), 12);
}

TEST_F(SentencePieceTokenizerTest, MergesByScoreInABytePairModel) {
  const auto tokenizer = open(byte_pair_model());
  EXPECT_EQ(tokenizer.encode("cat tac"), (Ids{9, 3, 6, 4, 5}));
}

TEST_F(SentencePieceTokenizerTest, TakesARunOfUnknownCharactersForOneId) {
  for (const auto& model : {unigram_model(), byte_pair_model()}) {
    const auto ids = open(model).encode("czq\u00E9t");
    EXPECT_EQ(ids, (Ids{ids[0], 5, 0, ids[3]}));
    EXPECT_EQ(open(model).encode("t\xFFt"), open(model).encode("t\uFFFDt"));
  }
}

TEST_F(SentencePieceTokenizerTest, TakesControlPiecesInATextForText) {
  for (const auto& model : {unigram_model(), byte_pair_model()}) {
    for (const int32_t id : open(model).encode("<s> </s> <unk>")) EXPECT_TRUE(id == 0 || id > 2) << id;
  }
}

TEST_F(SentencePieceTokenizerTest, DecodesIds) {
  const auto tokenizer = open(unigram_model());
  EXPECT_EQ(tokenizer.decode(Ids{1, 3, 9, 10, 2}), "a cat-");
  EXPECT_NE(test::message_of<DataError>([&] { tokenizer.decode(Ids{12}); }).find("id must be in [0, 12), but is 12"),
            std::string::npos);
  EXPECT_NE(test::message_of<DataError>([&] { tokenizer.decode(Ids{-1}); }), "no error");
}

TEST_F(SentencePieceTokenizerTest, EndsEveryRowOfLitWithTheEndId) {
  const auto lit = open(unigram_model(), lit_sentencepiece_options());
  Ids row(5, -1);
  EXPECT_EQ(lit.tokenize("a cat", row), 3);
  EXPECT_EQ(row, (Ids{3, 9, 2, 2, 2}));
  row.resize(2);
  EXPECT_EQ(lit.tokenize("a cat", row), 2);
  EXPECT_EQ(row, (Ids{3, 2}));
}

TEST_F(SentencePieceTokenizerTest, CanonicalizesAndPadsWithOneForSiglip) {
  const auto siglip = open(unigram_model(), siglip_tokenizer_options());
  Ids row(5, -1);
  EXPECT_EQ(siglip.tokenize(" A  \"CAT\"!", row), 3);
  EXPECT_EQ(row, (Ids{3, 9, 2, 1, 1}));
  EXPECT_EQ(open(unigram_model(), siglip2_tokenizer_options()).tokenize("", row), 1);
  EXPECT_EQ(row, (Ids{2, 0, 0, 0, 0}));
}

TEST_F(SentencePieceTokenizerTest, FollowsTheOtherPolicies) {
  SentencePieceOptions options;
  options.add_bos = true;
  options.keep_eos_when_truncated = false;
  const auto tokenizer = open(unigram_model(), options);
  Ids row(4, -1);
  EXPECT_EQ(tokenizer.tokenize("a cat", row), 4);
  EXPECT_EQ(row, (Ids{1, 3, 9, 2}));
  row.resize(3);
  EXPECT_EQ(tokenizer.tokenize("a cat", row), 3);
  EXPECT_EQ(row, (Ids{1, 3, 9}));
  EXPECT_EQ(test::message_of<DataError>([&] { tokenizer.tokenize("a cat", row, /*truncate=*/false); }),
            "[tokenize] text \"a cat\" must have at most 3 ids with start and end, but has 4");
  row.resize(1);
  EXPECT_EQ(test::message_of<ConfigError>([&] { tokenizer.tokenize("a", row); }),
            "[tokenize] context length must be at least 2, but is 1");
}

TEST_F(SentencePieceTokenizerTest, ReadsExtraPiecesAsUnknownWhereTheModelLacksThem) {
  const auto model = unigram_model() + piece("<x>", 0, kUserDefined);
  EXPECT_EQ(open(model).encode("<x>").back(), 12);
  SentencePieceOptions options;
  options.vocab_size = 12;
  EXPECT_EQ(open(model, options).encode("<x>").back(), 0);
  EXPECT_EQ(open(model, options).vocab_size(), 12);
  options.vocab_size = 11;
  EXPECT_EQ(error_on<ConfigError>(model, options),
            "vocab_size must be at least 12, the model's ordinary pieces, but is 11");
}

TEST_F(SentencePieceTokenizerTest, RefusesIdsThatTheModelLacks) {
  const auto model = piece("<unk>", 0, kUnknown) + piece("a", -1) + trainer(1);
  EXPECT_EQ(error_on<ConfigError>(model), "add_eos needs the end id, which the model lacks");
  SentencePieceOptions options;
  options.add_bos = true;
  EXPECT_EQ(error_on<ConfigError>(model, options), "add_bos needs the start id, which the model lacks");
  options = {};
  options.add_eos = false;
  options.pad_id = 2;
  EXPECT_EQ(error_on<ConfigError>(model, options), "pad_id must be in [0, 2), but is 2");
}

TEST_F(SentencePieceTokenizerTest, RefusesDamagedModels) {
  const auto unk = piece("<unk>", 0, kUnknown);
  EXPECT_EQ(error_on(""), "it must have one piece for unknown text, but has 0");
  EXPECT_EQ(error_on(unk), "it has no ordinary piece");
  EXPECT_EQ(error_on("\x0A\x7F"), "it ends inside a field: 127 more bytes must follow, but 0 do");
  EXPECT_EQ(error_on("\x0B"), "field 1 has the unknown kind 3");
  EXPECT_EQ(error_on(std::string(1, '\0')), "a field has no valid number");
  EXPECT_EQ(error_on(std::string(12, '\xFF')), "a number has more than ten bytes");
  EXPECT_EQ(error_on(unk + piece("a", -1) + piece("a", -1)), "piece 2 occurs a second time");
  EXPECT_EQ(error_on(unk + piece("", -1)), "piece 1 must have 1 to 4096 bytes, none of them 0");
  EXPECT_EQ(error_on(unk + piece(std::string("a\0b", 3), -1)), "piece 1 must have 1 to 4096 bytes, none of them 0");
  EXPECT_EQ(error_on(unk + piece("a", NAN)), "the score of piece 1 is no finite number");
  EXPECT_EQ(error_on(unk + piece("a", -1, 7)), "piece 1 has the unknown type 7");
  EXPECT_EQ(error_on(unigram_model() + trainer(1)), "part 2 occurs twice");
  EXPECT_EQ(error_on(unk + piece("a", -1) + trainer(4)), "its type must be unigram (1) or byte pairs (2), but is 4");
}

TEST_F(SentencePieceTokenizerTest, RefusesTooManyNestedPieces) {
  auto model = special_pieces() + piece("a", -1);
  for (int length = 1; length <= 65; ++length)
    model += piece(std::string(static_cast<size_t>(length), 'x'), 0, kUserDefined);
  EXPECT_EQ(error_on(model), "more than 64 user-defined pieces are beginnings of one another");
}

std::string with_character_map(const std::string& map) {
  return unigram_model() + bytes_field(3, bytes_field(2, map));
}

std::string units(const std::vector<uint32_t>& values) {
  std::string bytes;
  for (const uint32_t value : values) {
    for (int shift = 0; shift < 32; shift += 8) bytes += static_cast<char>(value >> shift);
  }
  return bytes;
}

TEST_F(SentencePieceTokenizerTest, RefusesACharacterMapThatLeadsOutOfBounds) {
  const auto map = [](const std::vector<uint32_t>& trie, const std::string& strings) {
    return units({static_cast<uint32_t>(4 * trie.size())}) + units(trie) + strings;
  };
  constexpr uint32_t kHasLeaf = 1 << 8;
  constexpr uint32_t kLeaf = 1U << 31;
  const std::string strings("A\0", 2);
  // The root's children are at 256; 'b' there has its own at 0x200, whose first says where the replacement starts.
  std::vector<uint32_t> trie(768, 0x80000001);
  trie[0] = 256 << 10;
  trie[256 ^ 'b'] = (256 ^ 'b' ^ 512) << 10 | kHasLeaf | 'b';
  trie[512] = kLeaf;
  EXPECT_EQ(open(with_character_map(map(trie, std::string("cat\0", 4)))).encode("a b"), (Ids{3, 9}));

  const auto damaged = [&](size_t index, uint32_t value) {
    auto copy = trie;
    copy[index] = value;
    return error_on(with_character_map(map(copy, strings)));
  };
  constexpr auto kDamaged = "its character map is damaged";
  EXPECT_EQ(damaged(0, 768 << 10), kDamaged);                                      // children past the end
  EXPECT_EQ(damaged(512, kLeaf | 2), kDamaged);                                    // a replacement past the end
  EXPECT_EQ(damaged(512, 7), kDamaged);                                            // no leaf where one is announced
  EXPECT_EQ(damaged(256 ^ 'b', uint32_t{256 ^ 'b' ^ 256} << 10 | 'b'), kDamaged);  // a circle
  EXPECT_EQ(error_on(with_character_map(map(trie, "A"))), kDamaged);               // no end of the last replacement
  EXPECT_EQ(error_on(with_character_map(units({1 << 30}) + strings)), kDamaged);
  EXPECT_EQ(error_on(with_character_map("ab")), kDamaged);
}

/// Whatever the file holds, it is refused or it works, and nothing is printed.
TEST_F(SentencePieceTokenizerTest, SurvivesRandomDamage) {
  constexpr unsigned kSeed = 20230926;
  std::mt19937 random(kSeed);
  testing::internal::CaptureStderr();
  int opened = 0;
  for (int i = 0; i < 500; ++i) {
    auto model = i % 2 == 0 ? unigram_model() : byte_pair_model();
    if (i % 3 == 0) model.resize(random() % model.size());
    for (auto count = random() % 4; count > 0 && !model.empty(); --count) {
      model[random() % model.size()] = static_cast<char>(random());
    }
    SentencePieceOptions options;
    options.add_eos = false;
    options.pad_id = 0;
    try {
      const auto tokenizer = open(model, options);
      tokenizer.decode(tokenizer.encode("a cat -- \u00E9 tac"));
      ++opened;
    } catch (const DataError&) {
    }
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "") << "seed " << kSeed;
  EXPECT_GT(opened, 0);
}

TEST_F(SentencePieceTokenizerTest, RefusesAMissingFile) {
  EXPECT_NE(test::message_of<DataError>([&] {
              SentencePieceTokenizer tokenizer(folder_.path() / "none.model");
            }).find("none.model"),
            std::string::npos);
}

}  // namespace
}  // namespace contrastive::text
