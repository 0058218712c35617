// Against transformers 4.57.6 (BertTokenizer, lower case).

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "contrastive/text/wordpiece_tokenizer.h"

#include "tests/support/paths.h"

namespace contrastive::text {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

TEST(WordPieceParityTest, ReproducesEveryRow) {
  const auto fixtures = test::fixtures_dir();
  if (!fixtures || !std::filesystem::exists(*fixtures / "hf/wordpiece")) {
    GTEST_SKIP() << "no fixtures of the reference libraries";
  }
  const WordPieceTokenizer tokenizer(*fixtures / "hf/wordpiece/vocab.txt");
  std::ifstream cases(*fixtures / "hf/wordpiece/cases.jsonl");
  int rows = 0;
  for (std::string line; std::getline(cases, line); ++rows) {
    const auto row = json::parse(line);
    const auto text = row.at("text").get<std::string>();
    auto expected = row.at("ids").get<Ids>();
    EXPECT_EQ(tokenizer.encode(text), Ids(expected.begin() + 1, expected.end() - 1)) << row.at("text");

    constexpr size_t kPadding = 3;
    Ids padded(expected.size() + kPadding, -1);
    EXPECT_EQ(tokenizer.tokenize(text, padded), static_cast<int64_t>(expected.size())) << row.at("text");
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), padded.begin())) << row.at("text");
  }
  EXPECT_GT(rows, 0);
}

}  // namespace
}  // namespace contrastive::text
