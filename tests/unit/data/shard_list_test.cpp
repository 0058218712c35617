#include "contrastive/data/shard_list.h"

#include <gtest/gtest.h>

#include "contrastive/core/error.h"

#include "tests/support/paths.h"
#include "tests/unit/data/shard_test_support.h"

namespace contrastive::data {
namespace {

using test::expect_mentions;
using test::message_of;

std::vector<std::string> expand(const std::string& list) {
  std::vector<std::string> texts;
  for (const auto& shard : expand_shard_list(list)) texts.push_back(shard.string());
  return texts;
}

using Texts = std::vector<std::string>;

// Expected values: what bash prints for the same words.
TEST(ShardListTest, ExpandsRangesSetsAndNestedBracesAsAShellDoes) {
  EXPECT_EQ(expand("a.tar"), Texts({"a.tar"}));
  EXPECT_EQ(expand("d/{008..011}.tar"), Texts({"d/008.tar", "d/009.tar", "d/010.tar", "d/011.tar"}));
  EXPECT_EQ(expand("{8..11}"), Texts({"8", "9", "10", "11"}));
  EXPECT_EQ(expand("{1..003}"), Texts({"001", "002", "003"}));
  EXPECT_EQ(expand("{3..1}"), Texts({"3", "2", "1"}));
  EXPECT_EQ(expand("{0..10..5}"), Texts({"0", "5", "10"}));
  EXPECT_EQ(expand("{-1..1}"), Texts({"-1", "0", "1"}));
  EXPECT_EQ(expand("x{a,b,}y"), Texts({"xay", "xby", "xy"}));
  EXPECT_EQ(expand("{a,b}{1..2}"), Texts({"a1", "a2", "b1", "b2"}));
  EXPECT_EQ(expand("{a{1..2},b{3,4{x,y}}}.tar"), Texts({"a1.tar", "a2.tar", "b3.tar", "b4x.tar", "b4y.tar"}));
}

TEST(ShardListTest, JoinsListsInOrderAndKeepsRepeatedShards) {
  EXPECT_EQ(expand("b/{0..1}.tar::a.tar::b/0.tar"), Texts({"b/0.tar", "b/1.tar", "a.tar", "b/0.tar"}));
}

TEST(ShardListTest, SaysWhatIsWrongWithAList) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "[shard list] is empty"},
      {" \n", "[shard list] is empty"},
      {"a.tar::", "\"a.tar::\": there is nothing beside a \"::\""},
      {"::a.tar", "there is nothing beside a \"::\""},
      {"{0..3.tar", "\"{0..3.tar\": a { is never closed"},
      {"0..3}.tar", "a } has no { before it"},
      {"{a,b}}", "a } has no { before it"},
      {"{abc}.tar", "{abc} is neither a range {first..last} nor a set {a,b}"},
      {"{}.tar", "{} is neither a range"},
      {"{0..x}", "the range {0..x} needs integers of at most 15 digits, but has \"x\""},
      {"{0..1..2..3}", "{0..1..2..3} is neither a range"},
      {"{..3}", "but has \"\""},
      {"{0..5..0}", "the range {0..5..0} has step 0"},
      {"{0..9999999999999999}", "at most 15 digits"},
      {"{0..999999999}", "gives 1000000000 shards or more, but at most 1000000 are allowed"},
      {"{0..999}{0..999}{0..999}", "shards or more"},
      {"{a,}", "gives an empty file name"},
      {"pipe:cat a.tar", "\"pipe:cat a.tar\": pipe: runs a command and is not supported"},
      {"a.tar::pipe:true", "pipe: runs a command"},
      {"https://host/{0..3}.tar", "only local files can be read, not URLs"},
      {std::string(40, '{') + "a,b" + std::string(40, '}'), "is neither a range"},
  };
  for (const auto& [list, expected] : cases) {
    expect_mentions(message_of<DataError>([&] { expand_shard_list(list); }), expected);
  }
}

TEST(ShardListTest, RefusesDeepNesting) {
  std::string list;
  for (int i = 0; i < 20; ++i) list += "{a,";
  list += "b" + std::string(20, '}');
  expect_mentions(message_of<DataError>([&] { expand_shard_list(list); }), "braces are nested more than 16 deep");
}

TEST(ShardListTest, ReportsAllMissingShardsTogether) {
  const test::TemporaryDirectory folder;
  test::write_file(folder.path() / "0.tar", "x");
  std::filesystem::create_directory(folder.path() / "1.tar");
  EXPECT_NO_THROW(require_shards_exist({folder.path() / "0.tar"}));

  const auto few =
      message_of<DataError>([&] { require_shards_exist(expand_shard_list((folder.path() / "{0..2}.tar").string())); });
  expect_mentions(few, "[shard list] 2 of 3 shards can't be read: ");
  expect_mentions(few, "1.tar (is a folder), ");
  expect_mentions(few, "2.tar (No such file or directory)");

  const auto many =
      message_of<DataError>([&] { require_shards_exist(expand_shard_list((folder.path() / "{0..24}.tar").string())); });
  expect_mentions(many, "24 of 25 shards can't be read: ");
  expect_mentions(many, "10.tar (No such file or directory), and 14 more");
  EXPECT_EQ(many.find("11.tar"), std::string::npos);
}

}  // namespace
}  // namespace contrastive::data
