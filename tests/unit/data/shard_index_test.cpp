#include "contrastive/data/shard_index.h"

#include <chrono>
#include <mutex>

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"
#include "contrastive/core/log.h"

#include "data/index_file.h"
#include "tests/support/paths.h"
#include "tests/unit/data/shard_test_support.h"

namespace contrastive::data {
namespace {

namespace fs = std::filesystem;
using test::expect_mentions;
using test::message_of;

/// "key: ext@content, ext@content" for each sample, the content taken from the shard at the indexed place.
std::vector<std::string> describe(const ShardIndex& index) {
  std::vector<std::string> samples;
  for (int64_t i = 0; i < index.size(); ++i) {
    const auto sample = index.sample(i);
    const auto bytes = test::read_file(index.shard_path(sample.shard()));
    std::string text(sample.key());
    for (int64_t m = 0; m < sample.num_members(); ++m) {
      const auto member = sample.member(m);
      text += (m == 0 ? ": " : ", ") + std::string(member.extension) + "@" +
              bytes.substr(static_cast<size_t>(member.offset), static_cast<size_t>(member.length));
    }
    samples.push_back(text);
  }
  return samples;
}

class ShardIndexTest : public ::testing::Test {
 protected:
  void SetUp() override { fs::create_directory(shards_); }
  void TearDown() override { ::chmod(shards_.c_str(), 0755); }

  fs::path write(const std::string& name, const test::Members& members) const {
    test::write_tar(shards_ / name, members);
    return shards_ / name;
  }

  ShardIndexOptions options() const {
    ShardIndexOptions options;
    options.cache_directory = cache_;
    return options;
  }

  ShardIndex open(std::vector<fs::path> shards) const { return ShardIndex::open(std::move(shards), options()); }

  fs::path cached_index_of(const fs::path& shard) const {
    const auto name = shard.string();
    return cache_ / (sha256_hex({reinterpret_cast<const uint8_t*>(name.data()), name.size()}) + ".index");
  }

  test::TemporaryDirectory folder_;
  fs::path shards_ = folder_.path() / "shards";
  fs::path cache_ = folder_.path() / "cache";
};

TEST(SplitMemberNameTest, FollowsTheRulesOfWebdataset) {
  const auto split = [](std::string_view name) {
    const auto parts = split_member_name(name);
    return parts ? std::string(parts->key) + " | " + parts->extension : std::string("none");
  };
  EXPECT_EQ(split("000.jpg"), "000 | jpg");
  EXPECT_EQ(split("000.JPG"), "000 | jpg");
  EXPECT_EQ(split("a.b/c.d/000.seg.PNG"), "a.b/c.d/000 | seg.png");
  EXPECT_EQ(split("./000.jpg"), "./000 | jpg");
  EXPECT_EQ(split("000."), "000 | ");
  EXPECT_EQ(split("README"), "none");
  EXPECT_EQ(split("a.b/README"), "none");
  EXPECT_EQ(split(".hidden"), "none");
  EXPECT_EQ(split("dir/.hidden.txt"), "none");
  EXPECT_EQ(split("__meta__"), "none");
  EXPECT_EQ(split("__meta__/000.json"), "none");
  EXPECT_EQ(split("__index__.json"), "none");
  EXPECT_EQ(split("dir/__index__.json"), "none");
  EXPECT_EQ(split("__x.jpg"), "__x | jpg");
}

TEST_F(ShardIndexTest, GroupsConsecutiveMembersAndNeverAcrossShards) {
  const auto a = write("a.tar", {{"__meta__/info.json", "{}"},
                                 {"0.jpg", "A"},
                                 {"0.TXT", "cat"},
                                 {"notes", "skipped"},
                                 {"0.json", "{}"},
                                 {"d/1.png", "B"},
                                 {"0.cls", "7"},
                                 {"2.jpg", "C"}});
  const auto b = write("b.tar", {{"2.txt", "dog"}});
  const auto index = open({a, b});
  EXPECT_EQ(describe(index), std::vector<std::string>(
                                 {"0: jpg@A, txt@cat, json@{}", "d/1: png@B", "0: cls@7", "2: jpg@C", "2: txt@dog"}));
  EXPECT_EQ(index.num_shards(), 2);
  EXPECT_EQ(index.shard_begin(0), 0);
  EXPECT_EQ(index.shard_begin(1), 4);
  EXPECT_EQ(index.shard_begin(2), 5);
  EXPECT_EQ(index.sample(4).shard(), 1);
  EXPECT_EQ(index.sample(0).member_list(), ".jpg, .txt, .json");
  EXPECT_EQ(index.sample(0).find("txt")->length, 3);
  EXPECT_FALSE(index.sample(0).find("cls"));
  expect_mentions(message_of<DataError>([&] { index.sample(5); }), "sample index 5 is outside [0, 5)");
  expect_mentions(message_of<DataError>([&] { index.sample(-1); }), "sample index -1 is outside [0, 5)");
}

TEST_F(ShardIndexTest, LoadsWhatItStoredBesideTheShard) {
  const auto a = write("a.tar", {{"0.jpg", "A"}, {"0.txt", "cat"}, {"1.jpg", "B"}, {"1.txt", ""}});
  const auto empty = write("empty.tar", {});
  const auto first = open({a, empty, a});
  EXPECT_EQ(first.num_built(), 2);
  EXPECT_TRUE(fs::exists(shards_ / "a.tar.index"));
  EXPECT_FALSE(fs::exists(cache_));
  const auto second = open({a, empty, a});
  EXPECT_EQ(second.num_built(), 0);
  EXPECT_EQ(second.size(), 4);
  EXPECT_EQ(describe(second), describe(first));
}

TEST_F(ShardIndexTest, UsesTheCacheFolderWhenTheShardsFolderIsReadOnly) {
  const auto a = write("a.tar", {{"0.jpg", "A"}});
  ::chmod(shards_.c_str(), 0555);  // the mode counts for root as well
  EXPECT_EQ(open({a}).num_built(), 1);
  EXPECT_FALSE(fs::exists(shards_ / "a.tar.index"));
  EXPECT_TRUE(fs::exists(cached_index_of(a)));
  EXPECT_EQ(open({a}).num_built(), 0);
}

TEST_F(ShardIndexTest, TakesTheCacheFolderFromTheEnvironment) {
  const test::ScopedEnvironment home("HOME", "/home/someone");
  const test::ScopedEnvironment cache("CONTRASTIVE_CACHE", std::nullopt);
  const test::ScopedEnvironment xdg("XDG_CACHE_HOME", std::nullopt);
  EXPECT_EQ(default_index_directory(), "/home/someone/.cache/contrastive/index");
  const test::ScopedEnvironment set_xdg("XDG_CACHE_HOME", "/x");
  EXPECT_EQ(default_index_directory(), "/x/contrastive/index");
  const test::ScopedEnvironment set_cache("CONTRASTIVE_CACHE", cache_.string());
  EXPECT_EQ(default_index_directory(), cache_ / "index");

  const auto a = write("a.tar", {{"0.jpg", "A"}});
  ::chmod(shards_.c_str(), 0555);
  ShardIndex::open({a});
  EXPECT_FALSE(fs::is_empty(cache_ / "index"));
}

TEST_F(ShardIndexTest, WarnsOnceAndGoesOnWhenNoIndexCanBeStored) {
  const auto a = write("a.tar", {{"0.jpg", "A"}});
  const auto b = write("b.tar", {{"0.jpg", "A"}});
  ::chmod(shards_.c_str(), 0555);
  test::write_file(cache_, "a file where the folder should be");
  std::vector<std::string> messages;
  set_log_sink([&](LogLevel, std::string_view message) { messages.emplace_back(message); });
  EXPECT_EQ(open({a, b}).size(), 2);
  set_log_sink(nullptr);
  ASSERT_EQ(messages.size(), 1U);
  expect_mentions(messages[0], "the index of 2 shards can be written neither beside them nor to \"" + cache_.string());
}

TEST_F(ShardIndexTest, NoticesThatAShardWasReplaced) {
  const auto a = write("a.tar", {{"0.jpg", "A"}});
  open({a});
  write("a.tar", {{"0.jpg", "A"}, {"1.jpg", "B"}});
  auto index = open({a});
  EXPECT_EQ(index.num_built(), 1);
  EXPECT_EQ(index.size(), 2);

  // Same size, another time.
  write("a.tar", {{"0.jpg", "A"}, {"2.jpg", "B"}});
  fs::last_write_time(a, fs::last_write_time(a) + std::chrono::seconds(1));
  index = open({a});
  EXPECT_EQ(index.num_built(), 1);
  EXPECT_EQ(index.sample(1).key(), "2");
}

TEST_F(ShardIndexTest, RefusesAnIndexFileWithAnyByteChangedOrCutOff) {
  const auto a = write("a.tar", {{"0.jpg", "A"}, {"0.txt", "cat"}, {"1.jpg", "B"}});
  const auto index = open({a});
  const detail::FileStamp stamp{index.shard_bytes(0), index.shard_mtime_ns(0)};
  const auto whole = test::read_file(shards_ / "a.tar.index");
  ASSERT_TRUE(detail::decode_index(whole, stamp));
  EXPECT_FALSE(detail::decode_index(whole, {stamp.bytes, stamp.mtime_ns + 1}));
  EXPECT_FALSE(detail::decode_index(whole + "x", stamp));
  for (size_t at = 0; at < whole.size(); ++at) {
    EXPECT_FALSE(detail::decode_index(whole.substr(0, at), stamp)) << "cut at " << at;
    for (int bit = 0; bit < 8; ++bit) {
      auto damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << bit));
      EXPECT_FALSE(detail::decode_index(damaged, stamp)) << "byte " << at;
    }
  }
}

TEST_F(ShardIndexTest, RebuildsDamagedIndexFilesSilently) {
  const auto a = write("a.tar", {{"0.jpg", "A"}, {"0.txt", "cat"}});
  const auto expected = describe(open({a}));
  const auto file = shards_ / "a.tar.index";
  const auto whole = test::read_file(file);
  const std::vector<std::string> damaged = {"", "x", whole.substr(0, 100), std::string(1 << 20, 'x')};
  for (const auto& content : damaged) {
    test::write_file(file, content);
    const auto index = open({a});
    EXPECT_EQ(index.num_built(), 1);
    EXPECT_EQ(describe(index), expected);
    EXPECT_EQ(test::read_file(file), whole);
  }
}

TEST_F(ShardIndexTest, PrefersAValidFileInTheCacheToAStaleOneBesideTheShard) {
  const auto a = write("a.tar", {{"0.jpg", "A"}});
  test::write_file(shards_ / "a.tar.index", "stale");
  ::chmod(shards_.c_str(), 0555);
  EXPECT_EQ(open({a}).num_built(), 1);
  EXPECT_EQ(open({a}).num_built(), 0);
  EXPECT_EQ(test::read_file(shards_ / "a.tar.index"), "stale");
}

TEST_F(ShardIndexTest, NamesEveryShardThatCannotBeIndexed) {
  const auto good = write("good.tar", {{"0.jpg", "A"}});
  const auto twice = write("twice.tar", {{"7.jpg", "A"}, {"7.JPG", "B"}});
  const auto cut = write("cut.tar", {{"0.jpg", std::string(2000, 'x')}});
  fs::resize_file(cut, 1024);
  const auto message = message_of<DataError>([&] { open({good, twice, cut}); });
  expect_mentions(message, "twice.tar] sample 7 has two members .jpg; ");
  expect_mentions(message, "cut.tar] damaged tar archive at offset 0: truncated");
  expect_mentions(message_of<DataError>([&] { open({good, shards_ / "none.tar"}); }), "1 of 2 shards can't be read");
}

TEST_F(ShardIndexTest, GivesTheSameIndexWithAnyNumberOfThreads) {
  std::vector<fs::path> shards;
  for (int i = 0; i < 20; ++i) {
    const auto text = std::to_string(i);
    shards.push_back(write(text + ".tar", {{text + ".jpg", text}, {text + "b.jpg", text}}));
  }
  auto many = options();
  many.threads = 8;
  const auto parallel = describe(ShardIndex::open(shards, many));
  for (const auto& shard : shards) fs::remove(shard.string() + ".index");
  auto one = options();
  one.threads = 1;
  EXPECT_EQ(describe(ShardIndex::open(shards, one)), parallel);
  EXPECT_EQ(parallel.size(), 40U);
}

}  // namespace
}  // namespace contrastive::data
