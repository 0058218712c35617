// Against open_clip 3.3.0's SimpleTokenizer (ftfy 6.3.1): fixtures, and digests over the prompts of the published
// evaluations.

#include "contrastive/text/clip_tokenizer.h"

#include <array>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/digest.h"
#include "contrastive/text/prompts.h"

#include "tests/support/paths.h"

namespace contrastive::text {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

const ClipTokenizer& tokenizer() {
  static const ClipTokenizer instance(test::merges_file());
  return instance;
}

/// The lines of a file, without the empty one at its end.
std::vector<std::string> read_lines(const std::filesystem::path& path) {
  std::ifstream in(path);
  if (!in) throw std::runtime_error("can't open " + path.string());
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

std::optional<std::filesystem::path> fixture(const std::string& name) {
  const auto folder = test::fixtures_dir();
  if (!folder || !std::filesystem::exists(*folder / "tokenizer" / name)) return std::nullopt;
  return *folder / "tokenizer" / name;
}

struct Tally {
  int rows = 0;
  int equal = 0;
};

/// Empty if the row's clean text and ids are reproduced.
std::string difference(const json& row) {
  const auto text = row.at("text").get<std::string>();
  const auto cleaned = clean_text(text);
  if (cleaned != row.at("clean").get<std::string>()) {
    return "cleaned to " + json(cleaned).dump() + " instead of " + row.at("clean").dump();
  }
  const auto expected = row.at("ids").get<Ids>();
  Ids actual(expected.size(), -1);
  tokenizer().tokenize(text, actual);
  return actual == expected ? "" : "ids " + json(actual).dump() + " instead of " + row.at("ids").dump();
}

TEST(ClipTokenizerParityTest, ReproducesEveryRow) {
  const auto file = fixture("clip_bpe.jsonl");
  if (!file) GTEST_SKIP() << "no fixtures of the reference libraries";
  std::map<std::string, Tally> tallies;
  for (const auto& line : read_lines(*file)) {
    const auto row = json::parse(line);
    auto& tally = tallies[row.at("category").get<std::string>()];
    const auto found = difference(row);
    ++tally.rows;
    tally.equal += found.empty();
    EXPECT_EQ(found, "") << row.at("category") << " row " << row.at("text").dump();
  }
  ASSERT_FALSE(tallies.empty());
  for (const auto& [category, tally] : tallies) {
    std::cout << category << ": " << tally.equal << " of " << tally.rows << " rows equal\n";
  }
}

TEST(ClipTokenizerParityTest, DecodesEveryRow) {
  const auto file = fixture("clip_decode.jsonl");
  if (!file) GTEST_SKIP() << "no fixtures of the reference libraries";
  const auto lines = read_lines(*file);
  ASSERT_FALSE(lines.empty());
  for (const auto& line : lines) {
    const auto row = json::parse(line);
    EXPECT_EQ(tokenizer().decode(row.at("ids").get<Ids>()), row.at("text").get<std::string>()) << row.at("ids");
  }
}

/// SHA-256 of the rows of 77 ids, each id as four bytes, lowest first.
std::string digest_of_rows(const std::vector<std::string>& texts) {
  std::vector<uint8_t> bytes;
  std::array<int32_t, 77> row;
  for (const auto& text : texts) {
    tokenizer().tokenize(text, row, /*truncate=*/false);
    for (const int32_t id : row) {
      for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<uint8_t>(id >> shift));
    }
  }
  return sha256_hex(bytes);
}

class PromptDigestTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto data = test::data_dir();
    if (!data || !std::filesystem::exists(*data / "prompts")) GTEST_SKIP() << "no prompts of the published evaluations";
    folder_ = *data / "prompts";
  }

  std::filesystem::path folder_;
};

TEST_F(PromptDigestTest, HoldsForImageNetWithOneTemplate) {
  std::vector<std::string> texts;
  for (const auto& name : read_lines(folder_ / "imagenet_classnames.txt")) {
    texts.push_back(fill_template("a photo of a {}.", name));
  }
  EXPECT_EQ(digest_of_rows(texts), "ad4af4d1c16019e9f5ebb8fc114253f96869fbfd6afcc8e0caf79f66b47dd458");
}

TEST_F(PromptDigestTest, HoldsForImageNetWithEightyTemplates) {
  const auto templates = read_lines(folder_ / "imagenet_templates_80.txt");
  std::vector<std::string> texts;
  for (const auto& name : read_lines(folder_ / "imagenet_classnames.txt")) {
    for (const auto& prompt : templates) texts.push_back(fill_template(prompt, name));
  }
  EXPECT_EQ(digest_of_rows(texts), "5c9ac1bcd9e6bdf95cb9c90a690164ac16ab301b329e7edb670dcdf89ae1e058");
}

TEST_F(PromptDigestTest, HoldsForTheRowsOfAllDatasets) {
  EXPECT_EQ(digest_of_rows(read_lines(folder_ / "clip_26_datasets_rows.txt")),
            "5789982720989fb19efe3ba1b2813126ba74bd219e98d1ceea79046156d90409");
}

}  // namespace
}  // namespace contrastive::text
