#include "contrastive/text/tokenizer.h"

#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"

namespace contrastive::text {
namespace {

/// One id a byte; refuses texts that hold a '!'.
class ByteTokenizer : public Tokenizer {
 public:
  int64_t tokenize(std::string_view text, std::span<int32_t> row, bool) const override {
    if (text.find('!') != text.npos) throw DataError("refused: " + std::string(text));
    std::fill(row.begin(), row.end(), 0);
    const size_t length = std::min(text.size(), row.size());
    std::copy_n(text.begin(), length, row.begin());
    return static_cast<int64_t>(length);
  }
  std::vector<int32_t> encode(std::string_view text) const override { return {text.begin(), text.end()}; }
  std::string decode(std::span<const int32_t> ids) const override { return {ids.begin(), ids.end()}; }
  int64_t vocab_size() const override { return 256; }
};

template <typename E>
std::string message_of(const std::vector<std::string>& texts, int64_t length, size_t num_ids, int threads) {
  std::vector<int32_t> rows(num_ids);
  try {
    tokenize_all(ByteTokenizer(), texts, length, rows, threads);
  } catch (const E& error) {
    return error.what();
  }
  return {};
}

TEST(TokenizeAllTest, FillsEveryRowWithAnyNumberOfThreads) {
  std::vector<std::string> texts;
  std::vector<int32_t> expected;
  for (char c = 'a'; c < 'x'; ++c) {
    texts.emplace_back(static_cast<size_t>(c - 'a') % 5, c);
    for (size_t i = 0; i < 3; ++i) expected.push_back(i < texts.back().size() ? c : 0);
  }
  for (const int threads : {1, 2, 3, 7, 100}) {
    std::vector<int32_t> rows(texts.size() * 3, -1);
    tokenize_all(ByteTokenizer(), texts, 3, rows, threads);
    EXPECT_EQ(rows, expected) << threads << " threads";
  }
}

TEST(TokenizeAllTest, TakesNoTexts) {
  EXPECT_EQ(message_of<Error>({}, 3, 0, 4), "");
}

TEST(TokenizeAllTest, PassesTheErrorOfTheFirstBadTextOn) {
  for (const int threads : {1, 2, 4}) {
    EXPECT_EQ(message_of<DataError>({"a", "b", "c!", "d", "e!", "f!"}, 2, 12, threads), "refused: c!");
  }
}

TEST(TokenizeAllTest, RefusesSizesThatDoNotFit) {
  EXPECT_EQ(message_of<ConfigError>({"a"}, 0, 1, 1), "[tokenize_all] context length must be at least 1, but is 0");
  EXPECT_EQ(message_of<ConfigError>({"a"}, 1, 1, 0), "[tokenize_all] threads must be at least 1, but is 0");
  for (const size_t num_ids : {5U, 3U, 9U}) {
    EXPECT_EQ(message_of<ConfigError>({"a", "b"}, 3, num_ids, 1),
              "[tokenize_all] rows of 2 texts must have 3 ids each, but there are " + std::to_string(num_ids) + " ids");
  }
}

}  // namespace
}  // namespace contrastive::text
