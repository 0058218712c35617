#include "contrastive/data/validate.h"

#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/data/shard_list.h"

#include "tests/support/paths.h"
#include "tests/unit/data/shard_test_support.h"

namespace contrastive::data {
namespace {

namespace fs = std::filesystem;
using Kind = ShardProblemKind;
using test::expect_mentions;
using test::message_of;

/// "shard key: kind" for each problem.
std::vector<std::string> summary(const ValidationReport& report) {
  std::vector<std::string> lines;
  for (const auto& problem : report.problems) {
    lines.push_back(problem.shard.filename().string() + " " + problem.key + ": " + to_string(problem.kind));
  }
  return lines;
}

class ValidateTest : public ::testing::Test {
 protected:
  fs::path write(const std::string& name, const test::Members& members) const {
    test::write_tar(folder_.path() / name, members);
    return folder_.path() / name;
  }

  test::TemporaryDirectory folder_;
};

TEST_F(ValidateTest, FindsNothingInGoodShards) {
  const auto a =
      write("a.tar", {{"0.png", test::png(1)}, {"0.txt", "four"}, {"1.png", test::png(2)}, {"1.txt", " abcdef "}});
  const auto report = validate_shards({a});
  EXPECT_EQ(summary(report), std::vector<std::string>());
  EXPECT_EQ(report.samples, 2);
  EXPECT_EQ(report.images_ok, 2);
  EXPECT_EQ(report.captions_ok, 2);
  EXPECT_EQ(report.caption_bytes_max, 6);
  EXPECT_DOUBLE_EQ(report.caption_bytes_mean, 5);
  EXPECT_TRUE(report.counts.empty());
  EXPECT_FALSE(fs::exists(folder_.path() / "a.tar.index"));
}

TEST_F(ValidateTest, NamesEveryBadSampleWithItsReason) {
  const auto image = test::png(1);
  const auto a = write("a.tar", {{"ok.png", image},
                                 {"ok.txt", "x"},
                                 {"cut.png", image.substr(0, image.size() / 2)},
                                 {"cut.txt", "x"},
                                 {"text.jpg", "not an image"},
                                 {"text.txt", "x"},
                                 {"none.txt", "x"},
                                 {"mute.png", image},
                                 {"blank.png", image},
                                 {"blank.txt", " \n"},
                                 {"bytes.png", image},
                                 {"bytes.txt", "\xff"},
                                 {"large.png", image + std::string(5000, 'x')},
                                 {"large.txt", "x"},
                                 {"ok.png", image},
                                 {"ok.txt", "x"},
                                 {"twice.png", image},
                                 {"twice.PNG", image},
                                 {"twice.txt", "x"}});
  ValidationOptions options;
  options.members.max_member_bytes = 5000;
  const auto report = validate_shards({a}, options);
  EXPECT_EQ(summary(report),
            std::vector<std::string>(
                {"a.tar cut: undecodable image", "a.tar text: undecodable image", "a.tar none: missing image",
                 "a.tar mute: missing caption", "a.tar blank: empty caption", "a.tar bytes: malformed caption",
                 "a.tar large: oversized member", "a.tar twice: duplicate extension", "a.tar ok: duplicate key"}));
  EXPECT_EQ(report.samples, 10);
  EXPECT_EQ(report.images_ok, 6);
  EXPECT_EQ(report.captions_ok, 7);
  EXPECT_EQ(report.captions_missing, 1);
  EXPECT_EQ(report.captions_empty, 1);
  EXPECT_EQ(report.counts.at(Kind::undecodable_image), 2);
  EXPECT_EQ(report.problems[2].reason, "no image: expected a member .jpg, .jpeg, .png or .webp; the sample has .txt");
  EXPECT_EQ(report.problems[7].reason, "the sample has two members .png");
  for (const auto& problem : report.problems) EXPECT_FALSE(problem.reason.empty());
}

TEST_F(ValidateTest, ReportsDamagedShardsAndStillChecksWhatLiesBeforeTheDamage) {
  const auto image = test::png(1);
  const auto a = write(
      "a.tar", {{"0.png", "bad"}, {"0.txt", "x"}, {"1.png", image}, {"1.txt", "x"}, {"2.png", image}, {"2.txt", "x"}});
  // 0 and 1 take four members of a header and one block each; the cut goes through 2's image.
  fs::resize_file(a, 8 * 512 + 512 + 10);
  const auto b = write("b.tar", {{"0.png", image}, {"0.txt", "x"}});
  fs::resize_file(b, 4 * 512);
  const auto c = write("c.tar", {});
  const auto report = validate_shards({a, b, c, folder_.path() / "none.tar"});
  EXPECT_EQ(summary(report), std::vector<std::string>({"a.tar 0: undecodable image", "a.tar 1: damaged archive",
                                                       "b.tar : missing end blocks", "c.tar : no samples",
                                                       "none.tar : damaged archive"}));
  EXPECT_EQ(report.samples, 2);
  expect_mentions(report.problems[1].reason, "damaged tar archive at offset 4096: truncated: \"2.png\"");
  expect_mentions(report.problems[1].reason, "; 1 samples lie before it");
  expect_mentions(report.problems[4].reason, "none.tar] the file can't be opened: No such file or directory");
}

TEST_F(ValidateTest, ChecksLabelsAndJsonCaptionsWhenTheyAreNeeded) {
  const auto image = test::png(1);
  const auto a = write("a.tar", {{"0.png", image},
                                 {"0.cls", "1"},
                                 {"0.json", R"({"c": ["one", "three"]})"},
                                 {"1.png", image},
                                 {"1.cls", "2"},
                                 {"1.json", "{}"},
                                 {"2.png", image},
                                 {"2.json", "["}});
  ValidationOptions options;
  options.members.caption_key = "json:c";
  options.members.need_label = true;
  options.members.num_labels = 2;
  const auto report = validate_shards({a}, options);
  EXPECT_EQ(summary(report), std::vector<std::string>({"a.tar 1: missing caption", "a.tar 1: malformed label",
                                                       "a.tar 2: malformed caption", "a.tar 2: missing label"}));
  EXPECT_DOUBLE_EQ(report.caption_bytes_mean, 4);
  options.members.caption_key = "json:";
  expect_mentions(message_of<ConfigError>([&] { validate_shards({a}, options); }), "needs the name of a field");
}

TEST_F(ValidateTest, ReportsTheSameInTheSameOrderWithAnyNumberOfThreads) {
  std::vector<fs::path> shards;
  for (int shard = 0; shard < 4; ++shard) {
    test::Members members;
    for (int i = 0; i < 200; ++i) {
      members.emplace_back(std::to_string(i) + ".png", i % 9 == 0 ? "bad" : test::png(1));
      members.emplace_back(std::to_string(i) + ".txt", "x");
    }
    shards.push_back(write(std::to_string(shard) + ".tar", members));
  }
  int64_t last = 0;
  ValidationOptions options;
  options.threads = 5;
  options.progress = [&](int64_t done, int64_t total) {
    EXPECT_GT(done, last);
    EXPECT_EQ(total, 800);
    last = done;
  };
  const auto many = validate_shards(shards, options);
  EXPECT_EQ(last, 800);
  const auto one = validate_shards(shards, {.members = {}, .decoding = {}, .threads = 1, .progress = {}});
  EXPECT_EQ(summary(many), summary(one));
  EXPECT_EQ(many.counts.at(Kind::undecodable_image), 4 * 23);
}

TEST_F(ValidateTest, FindsNothingInTheRealShards) {
  const auto data = test::data_dir();
  if (!data) GTEST_SKIP() << "no real data; set CONTRASTIVE_DATA";
  const auto shards = expand_shard_list((*data / "noto_emoji/train/{00000..00006}.tar").string());
  EXPECT_EQ(summary(validate_shards(shards)), std::vector<std::string>());
}

}  // namespace
}  // namespace contrastive::data
