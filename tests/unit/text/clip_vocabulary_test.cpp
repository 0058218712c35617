#include "contrastive/text/clip_vocabulary.h"

#include <fstream>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/text/clip_tokenizer.h"

#include "tests/support/paths.h"

namespace contrastive::text {
namespace {

using nlohmann::json;

json read_json(const std::filesystem::path& file) {
  return json::parse(read_text_file(file));
}

TEST(ClipVocabularyTest, NamesEveryId) {
  const test::TemporaryDirectory folder;
  write_clip_vocabulary(folder.path() / "new", test::merges_file());
  const auto vocabulary = read_json(folder.path() / "new/vocab.json");
  EXPECT_EQ(vocabulary.size(), 49408U);
  // Ids of the published vocab.json.
  for (const auto& [symbol, id] : std::map<std::string, int>{{"!", 0},
                                                             {"\"", 1},
                                                             {"~", 93},
                                                             {"\u00A1", 94},
                                                             {"\u00FF", 187},
                                                             {"\u0100", 188},
                                                             {"\u0120", 220},
                                                             {"!</w>", 256},
                                                             {"in", 512},
                                                             {"a</w>", 320},
                                                             {"cat</w>", 2368},
                                                             {"photo</w>", 1125},
                                                             {"jekyll</w>", 49405},
                                                             {"<|startoftext|>", 49406},
                                                             {"<|endoftext|>", 49407}}) {
    EXPECT_EQ(vocabulary.value(symbol, -1), id) << symbol;
  }
}

TEST(ClipVocabularyTest, ListsTheMergesInUse) {
  const test::TemporaryDirectory folder;
  write_clip_vocabulary(folder.path(), test::merges_file());
  const auto merges = read_text_file(folder.path() / "merges.txt");
  EXPECT_TRUE(merges.starts_with("#version: 0.2\ni n\n")) << merges.substr(0, 40);
  EXPECT_TRUE(merges.ends_with("\njeky ll</w>\n"));
  EXPECT_EQ(std::count(merges.begin(), merges.end(), '\n'), 1 + 49152 - 256 - 2);
}

TEST(ClipVocabularyTest, NamesTheMarkers) {
  const test::TemporaryDirectory folder;
  write_clip_vocabulary(folder.path(), test::merges_file());
  for (const auto* file : {"tokenizer_config.json", "special_tokens_map.json"}) {
    const auto values = read_json(folder.path() / file);
    EXPECT_EQ(values.at("bos_token"), "<|startoftext|>") << file;
    for (const auto* name : {"eos_token", "pad_token", "unk_token"})
      EXPECT_EQ(values.at(name), "<|endoftext|>") << file;
  }
  EXPECT_EQ(read_json(folder.path() / "tokenizer_config.json").at("tokenizer_class"), "CLIPTokenizer");
}

TEST(ClipVocabularyTest, RefusesAnotherMergesFile) {
  const test::TemporaryDirectory folder;
  const auto file = folder.path() / "merges";
  std::ofstream(file) << "#version: 0.2\ni n\n";
  EXPECT_THROW(write_clip_vocabulary(folder.path() / "new", file), DataError);
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "new"));
}

}  // namespace
}  // namespace contrastive::text
