#include "contrastive/data/shard_writer.h"

#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/data/shard_index.h"
#include "contrastive/data/webdataset_source.h"

#include "tests/support/paths.h"
#include "tests/unit/data/shard_test_support.h"

namespace contrastive::data {
namespace {

namespace fs = std::filesystem;
using test::expect_mentions;
using test::message_of;

/// Drawn and encoded images by turns, with captions and labels.
class SmallSource : public SampleSource {
 public:
  explicit SmallSource(int64_t size, int64_t bad = -1) : size_(size), bad_(bad) {}

  int64_t size() const override { return size_; }
  std::string describe(int64_t index) const override { return "sample " + std::to_string(index); }
  std::string fingerprint() const override { return "small"; }

  void read(int64_t index, RandomStream&, Sample& sample) const override {
    if (index == bad_) throw DataError("it is bad");
    sample = {};
    if (index % 2 == 0) {
      sample.drawn = picture(index);
    } else {
      sample.encoded = image::encode_jpeg(picture(index), 90);
    }
    sample.caption = index == 4 ? "" : "caption " + std::to_string(index);
    sample.label = index % 3;
  }

  static image::Image picture(int64_t index) {
    image::Image picture;
    picture.width = 5;
    picture.height = 4;
    picture.pixels.assign(60, static_cast<uint8_t>(index));
    return picture;
  }

 private:
  int64_t size_;
  int64_t bad_;
};

ClassificationSet classification_set(std::vector<std::string> names, std::vector<std::string> templates,
                                     std::shared_ptr<const SampleSource> source) {
  ClassificationSet set;
  set.class_names = std::move(names);
  set.templates = std::move(templates);
  set.source = std::move(source);
  return set;
}

class ShardWriterTest : public ::testing::Test {
 protected:
  std::vector<std::string> files(const fs::path& folder) const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }

  test::TemporaryDirectory folder_;
  fs::path out_ = folder_.path() / "deep/out";
};

TEST_F(ShardWriterTest, WritesNumberedShardsThatReadBackAsTheSource) {
  const SmallSource source(7);
  write_shards(source, out_, 3);
  EXPECT_EQ(files(out_), std::vector<std::string>({"00000.tar", "00001.tar", "00002.tar"}));

  const WebdatasetSource written(ShardIndex::open({out_ / "00000.tar", out_ / "00001.tar", out_ / "00002.tar"}),
                                 {.need_caption = false, .need_label = true});
  ASSERT_EQ(written.size(), 7);
  EXPECT_EQ(written.index().sample(6).key(), "000000006");
  EXPECT_EQ(written.index().sample(3).member_list(), ".jpg, .txt, .cls");
  EXPECT_EQ(written.index().sample(4).member_list(), ".png, .cls");
  RandomStream random(0, RandomPurpose::caption, {0});
  for (int64_t i = 0; i < 7; ++i) {
    Sample sample;
    written.read(i, random, sample);
    EXPECT_EQ(sample.label, i % 3);
    if (i % 2 == 0) {
      EXPECT_EQ(image::to_rgb(image::decode_image(sample.encoded)).pixels, SmallSource::picture(i).pixels);
    } else {
      EXPECT_EQ(sample.encoded, image::encode_jpeg(SmallSource::picture(i), 90));
    }
  }
  const auto members = test::read_tar(out_ / "00000.tar");
  EXPECT_EQ(members[1], (std::pair<std::string, std::string>("000000000.txt", "caption 0")));
  EXPECT_EQ(members[2], (std::pair<std::string, std::string>("000000000.cls", "0")));
}

TEST_F(ShardWriterTest, WritesTheSameBytesWithAnyNumberOfThreads) {
  const SmallSource source(20);
  int64_t calls = 0;
  ShardWriterOptions options;
  options.threads = 4;
  options.progress = [&](int64_t done, int64_t total) {
    EXPECT_EQ(done, ++calls);
    EXPECT_EQ(total, 20);
  };
  write_shards(source, out_, 3, options);
  write_shards(source, folder_.path() / "one", 3);
  EXPECT_EQ(calls, 20);
  for (const auto& name : files(out_))
    EXPECT_EQ(test::read_file(out_ / name), test::read_file(folder_.path() / "one" / name));
}

TEST_F(ShardWriterTest, WritesDrawnImagesAsJpegIfAskedTo) {
  ShardWriterOptions options;
  options.drawn_format = DrawnFormat::jpeg;
  write_shards(SmallSource(1), out_, 10, options);
  EXPECT_EQ(test::read_tar(out_ / "00000.tar")[0].first, "000000000.jpg");
  EXPECT_EQ(test::read_tar(out_ / "00000.tar")[0].second.substr(0, 2), "\xff\xd8");
}

TEST_F(ShardWriterTest, NeverOverwritesShards) {
  write_shards(SmallSource(2), out_, 1);
  const auto before = test::read_file(out_ / "00001.tar");
  expect_mentions(message_of<DataError>([&] { write_shards(SmallSource(9), out_, 1); }), "out] already holds 0000");
  EXPECT_EQ(test::read_file(out_ / "00001.tar"), before);
  EXPECT_EQ(files(out_).size(), 2U);
}

TEST_F(ShardWriterTest, NamesTheSampleThatCannotBeWrittenAndKeepsNoPartOfItsShard) {
  const auto message = message_of<DataError>([&] { write_shards(SmallSource(6, /*bad=*/4), out_, 3); });
  EXPECT_EQ(message, "sample 4: it is bad");
  EXPECT_EQ(files(out_), std::vector<std::string>({"00000.tar"}));
}

TEST_F(ShardWriterTest, ChecksItsArguments) {
  EXPECT_EQ(message_of<ConfigError>([&] { write_shards(SmallSource(1), out_, 0); }),
            "samples_per_shard: expected at least 1, but is 0");
  ShardWriterOptions options;
  options.jpeg_quality = 101;
  EXPECT_EQ(message_of<ConfigError>([&] { write_shards(SmallSource(1), out_, 1, options); }),
            "jpeg_quality: expected 1 to 100, but is 101");
  EXPECT_EQ(message_of<DataError>([&] { write_shards(SmallSource(0), out_, 1); }),
            "[write shards] the source is empty");
  EXPECT_FALSE(fs::exists(out_));
  test::write_file(folder_.path() / "file", "");
  expect_mentions(message_of<Error>([&] { write_shards(SmallSource(1), folder_.path() / "file/out", 1); }),
                  "the folder can't be created: Not a directory");
}

TEST_F(ShardWriterTest, WritesClassificationFoldersThatOpenAgain) {
  const auto set = classification_set({"cat", "dog", "owl"}, {"a {c}", "{c}!"}, std::make_shared<SmallSource>(7));
  write_classification_folder(set, out_, "test", 4);
  write_classification_folder(set, out_, "train", 100);
  EXPECT_EQ(files(out_ / "test"), std::vector<std::string>({"0.tar", "1.tar", "nshards.txt"}));
  EXPECT_EQ(test::read_file(out_ / "test/nshards.txt"), "2\n");
  EXPECT_EQ(test::read_file(out_ / "classnames.txt"), "cat\ndog\nowl\n");
  const auto opened = open_classification_folder(out_);
  EXPECT_EQ(opened.class_names, set.class_names);
  EXPECT_EQ(opened.templates, set.templates);
  EXPECT_EQ(opened.source->size(), 7);
  EXPECT_EQ(open_classification_folder(out_, "train").source->size(), 7);
}

TEST_F(ShardWriterTest, RefusesClassificationSetsThatDoNotFit) {
  const auto source = std::make_shared<SmallSource>(7);
  const auto error = [&](std::vector<std::string> names, std::vector<std::string> templates) {
    const auto set = classification_set(std::move(names), std::move(templates), source);
    return message_of<DataError>([&] { write_classification_folder(set, out_, "test", 4); });
  };
  EXPECT_EQ(error({"cat", "dog"}, {"{c}"}), "sample 2: the label is 2, expected [0, 2)");
  expect_mentions(error({"cat", "dog", "owl"}, {"{c}"}), "classnames.txt] exists and differs");
  expect_mentions(error({"cat", "a\nb"}, {"{c}"}), "can't be a class name: it is empty or spans lines");
  expect_mentions(error({}, {"{c}"}), "a set needs class names and templates, but has 0 and 1");
}

}  // namespace
}  // namespace contrastive::data
