#include "contrastive/data/webdataset_source.h"

#include <atomic>
#include <chrono>
#include <set>
#include <thread>

#include <gtest/gtest.h>
#include <sys/resource.h>

#include "contrastive/core/error.h"

#include "tests/support/paths.h"
#include "tests/unit/data/shard_test_support.h"

namespace contrastive::data {
namespace {

namespace fs = std::filesystem;
using test::expect_mentions;
using test::message_of;

RandomStream stream(int64_t counter = 0) {
  return {1, RandomPurpose::caption, {counter}};
}

class WebdatasetSourceTest : public ::testing::Test {
 protected:
  fs::path write(const std::string& name, const test::Members& members) const {
    test::write_tar(folder_.path() / name, members);
    return folder_.path() / name;
  }

  WebdatasetSource open(const test::Members& members, const WebdatasetOptions& options = {}) const {
    return WebdatasetSource(ShardIndex::open({write("a.tar", members)}), options);
  }

  static Sample read(const WebdatasetSource& source, int64_t index = 0) {
    Sample sample;
    auto random = stream();
    source.read(index, random, sample);
    return sample;
  }

  static std::string image_of(const Sample& sample) { return {sample.encoded.begin(), sample.encoded.end()}; }

  test::TemporaryDirectory folder_;
};

TEST_F(WebdatasetSourceTest, HandsOutTheImageBytesAndTheStrippedCaption) {
  const auto source = open({{"0.jpg", "IMAGE"}, {"0.txt", "\n a cat \r\n"}, {"1.txt", "a dog"}, {"1.PNG", "OTHER"}});
  EXPECT_EQ(source.size(), 2);
  const auto first = read(source, 0);
  EXPECT_EQ(image_of(first), "IMAGE");
  EXPECT_EQ(first.caption, "a cat");
  EXPECT_EQ(first.label, -1);
  EXPECT_TRUE(first.drawn.pixels.empty());
  const auto second = read(source, 1);
  EXPECT_EQ(image_of(second), "OTHER");
  EXPECT_EQ(second.caption, "a dog");
}

TEST_F(WebdatasetSourceTest, ReadsMembersThatLieFarApart) {
  const std::string image(100'000, 'i');
  const auto source = open({{"0.jpg", image}, {"0.npy", std::string(200'000, 'n')}, {"0.txt", "far"}, {"0.cls", "3"}},
                           {.need_label = true});
  const auto sample = read(source);
  EXPECT_EQ(image_of(sample), image);
  EXPECT_EQ(sample.caption, "far");
  EXPECT_EQ(sample.label, 3);
}

TEST_F(WebdatasetSourceTest, TakesTheFirstImageKeyThatIsThere) {
  const test::Members members = {{"0.png", "P"}, {"0.jpg", "J"}, {"0.txt", "x"}};
  EXPECT_EQ(image_of(read(open(members))), "J");
  EXPECT_EQ(image_of(read(open(members, {.image_keys = "webp;png;jpg"}))), "P");
}

TEST_F(WebdatasetSourceTest, ReadsCaptionsFromAJsonField) {
  const WebdatasetOptions options{.caption_key = "json:caption"};
  EXPECT_EQ(read(open({{"0.jpg", "I"}, {"0.json", R"({"caption": " \u00e9t\u00e9 "})"}}, options)).caption,
            "\xc3\xa9t\xc3\xa9");
  const auto error = [&](const std::string& json) {
    const auto source = open({{"0.jpg", "I"}, {"0.json", json}}, options);
    return message_of<DataError>([&] { read(source); });
  };
  EXPECT_EQ(error(R"({"name": "x"})"), "no caption: the .json member has no field \"caption\"");
  EXPECT_EQ(error(R"({"caption": null})"), "no caption: the .json member has no field \"caption\"");
  EXPECT_EQ(error(R"({"caption": 3})"),
            "the .json member's field \"caption\" should be a string or a list of strings, but is number");
  EXPECT_EQ(error(R"({"caption": ["x", {}]})"),
            "the .json member's field \"caption\" should be a string or a list of strings, but is a list with object");
  EXPECT_EQ(error(R"({"caption": []})"), "the caption is empty");
  EXPECT_EQ(error(R"({"caption": "x")"), "the .json member is not a JSON object");
  EXPECT_EQ(error(std::string(100'000, '[')), "the .json member is not a JSON object");
}

TEST_F(WebdatasetSourceTest, DrawsEveryCaptionOfAListAndTheSameOneForTheSameStream) {
  const auto list = open({{"0.jpg", "I"}, {"0.json", R"({"c": ["a", " ", "b", "c"]})"}}, {.caption_key = "json:c"});
  const auto text = write("b.tar", {{"0.jpg", "I"}, {"0.txt", "a\r\n\nb\n c\n"}});
  const WebdatasetSource lines(ShardIndex::open({text}), {.caption_lines = true});
  for (const auto* source : {&list, &lines}) {
    std::set<std::string> seen;
    for (int64_t i = 0; i < 100; ++i) {
      Sample first;
      Sample second;
      auto one = stream(i);
      auto two = stream(i);
      source->read(0, one, first);
      source->read(0, two, second);
      EXPECT_EQ(first.caption, second.caption);
      seen.insert(first.caption);
    }
    EXPECT_EQ(seen, std::set<std::string>({"a", "b", "c"}));
  }
  EXPECT_EQ(read(open({{"0.jpg", "I"}, {"0.txt", "a\nb"}})).caption, "a\nb");
}

TEST_F(WebdatasetSourceTest, SaysWhichMemberIsMissingAndWhichAreThere) {
  const auto source =
      open({{"0.jpg", "I"}, {"0.txt", "x"}, {"1.cls", "1"}, {"1.txt", "x"}, {"2.jpeg", "I"}, {"2.cls", "1"}});
  EXPECT_EQ(message_of<DataError>([&] { read(source, 1); }),
            "no image: expected a member .jpg, .jpeg, .png or .webp; the sample has .cls, .txt");
  EXPECT_EQ(message_of<DataError>([&] { read(source, 2); }),
            "no caption: expected a member .txt; the sample has .jpeg, .cls");
  EXPECT_EQ(source.describe(2), "[" + (folder_.path() / "a.tar").string() + "] sample 2");
  EXPECT_EQ(message_of<DataError>([&] { read(source, 3); }), "sample index 3 is outside [0, 3)");
}

TEST_F(WebdatasetSourceTest, RefusesEmptyAndMalformedCaptions) {
  const auto source = open({{"0.jpg", "I"}, {"0.txt", " \n"}, {"1.jpg", "I"}, {"1.txt", "ab\xff"}});
  EXPECT_EQ(message_of<DataError>([&] { read(source, 0); }), "the caption is empty");
  EXPECT_EQ(message_of<DataError>([&] { read(source, 1); }), "the caption is not UTF-8: wrong byte at 2");
}

// Source of the cases: The Unicode Standard 15, table 3-7 and its explanation.
TEST_F(WebdatasetSourceTest, TellsWellFormedUtf8FromTheRest) {
  const std::vector<std::pair<std::string, bool>> cases = {{"\x7f", true},
                                                           {"\xc2\x80", true},
                                                           {"\xe0\xa0\x80", true},
                                                           {"\xed\x9f\xbf", true},
                                                           {"\xef\xbf\xbf", true},
                                                           {"\xf0\x90\x80\x80", true},
                                                           {"\xf4\x8f\xbf\xbf", true},
                                                           {"\x80", false},
                                                           {"\xc1\xbf", false},
                                                           {"\xc2", false},
                                                           {"\xc2\x41", false},
                                                           {"\xe0\x9f\xbf", false},
                                                           {"\xed\xa0\x80", false},
                                                           {"\xe1\x80", false},
                                                           {"\xe1\x80\x41", false},
                                                           {"\xf0\x8f\xbf\xbf", false},
                                                           {"\xf4\x90\x80\x80", false},
                                                           {"\xf5\x80\x80\x80", false},
                                                           {"\xf1\x80\x80\xc0", false}};
  for (const auto& [text, well_formed] : cases) {
    const auto source = open({{"0.jpg", "I"}, {"0.txt", "a" + text + "b"}});
    if (well_formed) {
      EXPECT_EQ(read(source).caption, "a" + text + "b");
    } else {
      EXPECT_EQ(message_of<DataError>([&] { read(source); }), "the caption is not UTF-8: wrong byte at 1");
    }
  }
}

TEST_F(WebdatasetSourceTest, ReadsLabelsAndRefusesThoseOutOfRange) {
  const WebdatasetOptions options{.need_caption = false, .need_label = true, .num_labels = 10};
  const auto source = open({{"0.jpg", "I"},
                            {"0.cls", " 9\n"},
                            {"1.jpg", "I"},
                            {"1.cls", "10"},
                            {"2.jpg", "I"},
                            {"2.cls", "-1"},
                            {"3.jpg", "I"},
                            {"3.cls", "1.5"},
                            {"4.jpg", "I"},
                            {"4.cls", ""},
                            {"5.jpg", "I"}},
                           options);
  EXPECT_EQ(read(source, 0).label, 9);
  EXPECT_EQ(read(source, 0).caption, "");
  const auto error = [&](int64_t index) { return message_of<DataError>([&] { read(source, index); }); };
  EXPECT_EQ(error(1), "the label is 10, but there are 10 class names: expected [0, 10)");
  EXPECT_EQ(error(2), "the label is -1, which is negative");
  EXPECT_EQ(error(3), "the label should be an integer, but the .cls member holds \"1.5\"");
  EXPECT_EQ(error(4), "the label should be an integer, but the .cls member holds \"\"");
  EXPECT_EQ(error(5), "no label: expected a member .cls; the sample has .jpg");
}

TEST_F(WebdatasetSourceTest, BoundsWhatItReads) {
  const auto source = open({{"0.jpg", std::string(101, 'x')}, {"0.txt", "x"}}, {.max_member_bytes = 100});
  EXPECT_EQ(message_of<DataError>([&] { read(source); }),
            "the member .jpg has 101 bytes, but at most 100 are allowed (max_member_bytes)");
}

TEST_F(WebdatasetSourceTest, RefusesSetsOfWhichNothingCanBeUsed) {
  const auto message = message_of<DataError>([&] { open({{"7.jpg", "I"}, {"7.cls", "1"}, {"8.txt", "x"}}); });
  expect_mentions(message, "none of the 2 samples can be used; the first, 7 in [");
  expect_mentions(message, "a.tar]: no caption: expected a member .txt; the sample has .jpg, .cls");
  expect_mentions(message_of<DataError>([&] { open({}); }), "a.tar on hold no sample");
}

TEST_F(WebdatasetSourceTest, ChecksItsOptions) {
  const auto error = [&](const WebdatasetOptions& options) {
    return message_of<ConfigError>([&] { open({{"0.jpg", "I"}, {"0.txt", "x"}}, options); });
  };
  EXPECT_EQ(error({.image_keys = "jpg;"}),
            "image_keys: \"jpg;\" has an empty extension; expected something like jpg;png");
  EXPECT_EQ(error({.image_keys = ""}), "image_keys: \"\" has an empty extension; expected something like jpg;png");
  EXPECT_EQ(error({.caption_key = "json:"}), "caption_key: \"json:\" needs the name of a field, like json:caption");
  EXPECT_EQ(error({.max_member_bytes = 0}), "max_member_bytes: expected at least 1, but is 0");
  EXPECT_EQ(error({.max_open_shards = 0}), "max_open_shards: expected at least 1, but is 0");
}

TEST_F(WebdatasetSourceTest, SaysThatAShardVanishedChangedOrShrank) {
  const test::Members members = {{"0.jpg", std::string(2000, 'x')}, {"0.txt", "x"}};
  const auto vanished = open(members);
  fs::remove(folder_.path() / "a.tar");
  EXPECT_EQ(message_of<DataError>([&] { read(vanished); }), "the file can't be opened: No such file or directory");

  const auto replaced = open(members);
  write("a.tar", {{"0.jpg", "I"}});
  EXPECT_EQ(message_of<DataError>([&] { read(replaced); }),
            "the shard changed since it was indexed: it had 4608 bytes, now 2048");

  const auto touched = open(members);
  fs::last_write_time(folder_.path() / "a.tar", fs::file_time_type::clock::now() + std::chrono::hours(1));
  EXPECT_EQ(message_of<DataError>([&] { read(touched); }),
            "the shard changed since it was indexed: its modification time is another");

  const auto shrunk = open(members);
  read(shrunk);
  fs::resize_file(folder_.path() / "a.tar", 1024);
  EXPECT_EQ(message_of<DataError>([&] { read(shrunk); }),
            "the file has shrunk: it ended at 1024 of the 4608 bytes it had when it was opened");
}

TEST_F(WebdatasetSourceTest, FingerprintFollowsContentAndOrderButNotPlaceOrTime) {
  const auto fingerprint = [](std::vector<fs::path> shards) {
    return WebdatasetSource(ShardIndex::open(std::move(shards))).fingerprint();
  };
  const test::Members one = {{"0.jpg", "I"}, {"0.txt", "x"}};
  const test::Members two = {{"0.jpg", "I"}, {"0.txt", "x"}, {"1.jpg", "I"}};
  fs::create_directory(folder_.path() / "elsewhere");
  const auto a = write("a.tar", one);
  const auto b = write("b.tar", two);
  const auto a_elsewhere = write("elsewhere/a.tar", one);
  fs::last_write_time(a_elsewhere, fs::file_time_type::clock::now() - std::chrono::hours(1));
  const auto before = fingerprint({a, b});
  EXPECT_EQ(before.size(), 64U);
  EXPECT_EQ(fingerprint({a_elsewhere, b}), before);
  EXPECT_NE(fingerprint({b, a}), before);
  EXPECT_NE(fingerprint({a}), before);
  write("a.tar", two);
  EXPECT_NE(fingerprint({a, b}), before);
}

TEST_F(WebdatasetSourceTest, ReadsFromManyThreadsThroughFewFileDescriptors) {
  constexpr int kShards = 12;
  std::vector<fs::path> shards;
  for (int shard = 0; shard < kShards; ++shard) {
    test::Members members;
    for (int i = 0; i < 20; ++i) {
      const auto key = std::to_string(shard) + "_" + std::to_string(i);
      members.emplace_back(key + ".jpg", "image of " + key);
      members.emplace_back(key + ".txt", "caption of " + key);
    }
    shards.push_back(write(std::to_string(shard) + ".tar", members));
  }
  const WebdatasetSource source(ShardIndex::open(shards), {.max_open_shards = 3});
  std::atomic<int> wrong{0};
  const auto read_all = [&](int64_t stride) {
    Sample sample;
    auto random = stream();
    for (int64_t n = 0; n < 4 * source.size(); ++n) {
      const auto index = n * stride % source.size();
      source.read(index, random, sample);
      const auto key = std::string(source.index().sample(index).key());
      if (image_of(sample) != "image of " + key || sample.caption != "caption of " + key) ++wrong;
    }
  };
  {
    std::vector<std::jthread> threads;
    for (const int64_t stride : {1, 7, 11, 101, 103, 107}) threads.emplace_back(read_all, stride);
  }
  EXPECT_EQ(wrong, 0);
  int open_shards = 0;
  for (const auto& entry : fs::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const auto target = fs::read_symlink(entry.path(), gone);
    if (!gone && target.parent_path() == folder_.path()) ++open_shards;
  }
  EXPECT_EQ(open_shards, 3);
}

TEST_F(WebdatasetSourceTest, FindsTheSamplesThatTarListsInRealShards) {
  const auto data = test::data_dir();
  if (!data) GTEST_SKIP() << "no real data; set CONTRASTIVE_DATA";
  const test::ScopedEnvironment cache("CONTRASTIVE_CACHE", folder_.path().string());
  std::vector<fs::path> shards;
  std::string expected_keys;
  for (const auto& entry : fs::directory_iterator(*data / "noto_emoji/train")) {
    if (entry.path().extension() != ".tar") continue;
    shards.push_back(entry.path());
    expected_keys += test::output_of("tar -tf '" + entry.path().string() + "' | cut -d. -f1 | uniq");
  }
  const WebdatasetSource source(ShardIndex::open(shards), {.image_keys = "png", .caption_key = "txt"});
  std::string keys;
  for (int64_t i = 0; i < source.size(); ++i) {
    ASSERT_EQ(image_of(read(source, i)).substr(0, 4), "\x89PNG") << source.describe(i);
    keys += std::string(source.index().sample(i).key()) + "\n";
  }
  EXPECT_EQ(keys, expected_keys);
}

}  // namespace
}  // namespace contrastive::data
