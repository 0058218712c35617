// Against sentencepiece 0.2.3 (SentencePieceProcessor.encode and decode).

#include <fstream>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "contrastive/text/sentencepiece_tokenizer.h"

#include "tests/support/paths.h"

namespace contrastive::text {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

TEST(SentencePieceParityTest, ReproducesIdsAndTextOfEveryRow) {
  const auto fixtures = test::fixtures_dir();
  if (!fixtures || !std::filesystem::exists(*fixtures / "tokenizer/sentencepiece")) {
    GTEST_SKIP() << "no fixtures of the reference libraries";
  }
  const auto folder = *fixtures / "tokenizer/sentencepiece";
  std::map<std::string, SentencePieceTokenizer> tokenizers;
  for (const std::string name : {"unigram", "bpe"}) tokenizers.emplace(name, folder / (name + ".model"));

  std::ifstream cases(folder / "cases.jsonl");
  int rows = 0;
  for (std::string line; std::getline(cases, line); ++rows) {
    const auto row = json::parse(line);
    for (const auto& [name, tokenizer] : tokenizers) {
      const auto expected = row.at(name).get<Ids>();
      EXPECT_EQ(tokenizer.encode(row.at("text").get<std::string>()), expected) << name << ": " << row.at("text");
      EXPECT_EQ(tokenizer.decode(expected), row.at(name + "_decoded").get<std::string>())
          << name << ": " << expected.size();
    }
  }
  EXPECT_GT(rows, 0);
}

}  // namespace
}  // namespace contrastive::text
