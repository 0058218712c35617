#include "contrastive/data/classification_set.h"

#include <gtest/gtest.h>

#include "contrastive/core/error.h"

#include "tests/support/paths.h"
#include "tests/unit/data/shard_test_support.h"

namespace contrastive::data {
namespace {

namespace fs = std::filesystem;
using test::expect_mentions;
using test::message_of;

class ClassificationSetTest : public ::testing::Test {
 protected:
  void SetUp() override {
    fs::create_directories(root_ / "test");
    test::write_file(root_ / "classnames.txt", "cat\r\nbig dog\n\n");
    test::write_file(root_ / "zeroshot_classification_templates.txt", "a photo of a {c}.\n{c}");
    test::write_file(root_ / "test/nshards.txt", "2\n");
    test::write_tar(root_ / "test/0.tar", {{"s0.jpg", "I"}, {"s0.cls", "1"}, {"s1.webp", "W"}, {"s1.cls", "0"}});
    test::write_tar(root_ / "test/1.tar", {{"s2.png", "P"}, {"s2.cls", "2"}});
  }

  std::string error() const {
    return message_of<DataError>([&] { open_classification_folder(root_); });
  }

  static Sample read(const ClassificationSet& set, int64_t index) {
    Sample sample;
    RandomStream random(0, RandomPurpose::caption, {index});
    set.source->read(index, random, sample);
    return sample;
  }

  test::TemporaryDirectory folder_;
  fs::path root_ = folder_.path() / "pets";
};

TEST_F(ClassificationSetTest, ReadsNamesTemplatesAndLabels) {
  const auto set = open_classification_folder(root_);
  EXPECT_EQ(set.name, "pets");
  EXPECT_EQ(set.class_names, std::vector<std::string>({"cat", "big dog"}));
  EXPECT_EQ(set.templates, std::vector<std::string>({"a photo of a {c}.", "{c}"}));
  ASSERT_EQ(set.source->size(), 3);
  EXPECT_EQ(read(set, 0).label, 1);
  EXPECT_EQ(read(set, 1).label, 0);
  EXPECT_EQ(read(set, 1).encoded, std::vector<uint8_t>({'W'}));
  EXPECT_EQ(message_of<DataError>([&] { read(set, 2); }),
            "the label is 2, but there are 2 class names: expected [0, 2)");
}

TEST_F(ClassificationSetTest, AcceptsTheSplitFolderItself) {
  for (const auto& folder : {root_ / "test", root_ / "test/", root_ / ""}) {
    const auto set = open_classification_folder(folder);
    EXPECT_EQ(set.name, "pets");
    EXPECT_EQ(set.source->size(), 3);
  }
  test::write_file(root_ / "test/classnames.txt", "a\nb\nc\n");
  EXPECT_EQ(open_classification_folder(root_ / "test").class_names.size(), 3U);
}

TEST_F(ClassificationSetTest, NamesTheFileThatIsMissing) {
  fs::remove(root_ / "classnames.txt");
  expect_mentions(error(), "pets] classnames.txt is missing");
  SetUp();
  fs::remove(root_ / "zeroshot_classification_templates.txt");
  expect_mentions(error(), "pets] zeroshot_classification_templates.txt is missing");
  SetUp();
  fs::remove(root_ / "test/1.tar");
  expect_mentions(error(), "test/nshards.txt] says there are 2 shards: ");
  expect_mentions(error(), "test/1.tar (No such file or directory)");
  expect_mentions(message_of<DataError>([&] { open_classification_folder(root_, "val"); }),
                  "there is neither val/nshards.txt nor nshards.txt; splits here: test");
  expect_mentions(message_of<DataError>([&] { open_classification_folder(root_ / "none"); }), "none] is not a folder");
}

TEST_F(ClassificationSetTest, ChecksTheNumberOfShards) {
  for (const std::string text : {"", "two", "0", "-1", "2.0", "99999999"}) {
    test::write_file(root_ / "test/nshards.txt", text);
    expect_mentions(error(),
                    "test/nshards.txt] expected the number of shards in [1, 1000000], but found \"" + text + "\"");
  }
  test::write_file(root_ / "test/nshards.txt", "1");
  expect_mentions(error(), "test/nshards.txt] says there are 1 shards, but 1.tar exists as well");
}

TEST_F(ClassificationSetTest, ChecksNamesAndTemplates) {
  test::write_file(root_ / "classnames.txt", "cat\n \ndog\n");
  expect_mentions(error(), "classnames.txt] line 2: the class name is empty");
  test::write_file(root_ / "classnames.txt", "\n\n");
  expect_mentions(error(), "classnames.txt] holds no class name");
  test::write_file(root_ / "classnames.txt", "cat\xff\n");
  expect_mentions(error(), "classnames.txt] is not UTF-8: wrong byte at 3");
  SetUp();
  test::write_file(root_ / "zeroshot_classification_templates.txt", "a {c}\na photo\n");
  expect_mentions(error(), "templates.txt] line 2: the template \"a photo\" has no {c} for the class name");
}

TEST_F(ClassificationSetTest, RefusesSetsOfAnotherType) {
  test::write_file(root_ / "dataset_type.txt", "retrieval\n");
  expect_mentions(error(), "dataset_type.txt] the data set is for retrieval, expected classification");
}

TEST_F(ClassificationSetTest, ReadsRealSets) {
  const auto data = test::data_dir();
  if (!data) GTEST_SKIP() << "no real data; set CONTRASTIVE_DATA";
  const test::ScopedEnvironment cache("CONTRASTIVE_CACHE", folder_.path().string());
  for (const std::string name : {"cifar10", "imagenet_sample", "noto_emoji"}) {
    const auto set = open_classification_folder(*data / name);
    EXPECT_EQ(set.name, name);
    EXPECT_GT(set.source->size(), 0);
    for (int64_t i = 0; i < set.source->size(); ++i) ASSERT_NO_THROW(read(set, i)) << set.source->describe(i);
  }
}

}  // namespace
}  // namespace contrastive::data
