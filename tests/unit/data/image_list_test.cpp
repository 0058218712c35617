#include "contrastive/data/image_list.h"

#include <gtest/gtest.h>

#include "contrastive/core/error.h"

#include "tests/support/paths.h"
#include "tests/unit/data/shard_test_support.h"

namespace contrastive::data {
namespace {

namespace fs = std::filesystem;
using test::expect_mentions;
using test::message_of;

class ImageListTest : public ::testing::Test {
 protected:
  void SetUp() override {
    test::write_file(root_ / "a.jpg", "A");
    test::write_file(root_ / "b.jpg", "BB");
  }

  Sample read(const ImageListSource& source, int64_t index) const {
    Sample sample;
    sample.labels = {9};
    sample.caption = "old";
    RandomStream random(0, RandomPurpose::caption, {index});
    source.read(index, random, sample);
    return sample;
  }

  test::TemporaryDirectory folder_;
  fs::path root_ = folder_.path();
};

TEST_F(ImageListTest, ReadsFilesWithTheirLabels) {
  const ImageListSource source(root_, {{"b.jpg", 3, {}}, {(root_ / "a.jpg").string(), -1, {1, 2}}});
  ASSERT_EQ(source.size(), 2);
  const auto first = read(source, 0);
  EXPECT_EQ(first.encoded, std::vector<uint8_t>({'B', 'B'}));
  EXPECT_EQ(first.label, 3);
  EXPECT_TRUE(first.labels.empty());
  EXPECT_EQ(first.caption, "");
  EXPECT_EQ(read(source, 1).labels, std::vector<int64_t>({1, 2}));
  EXPECT_EQ(source.bytes_read(), 3);
  EXPECT_EQ(source.describe(0), "[" + root_.string() + "] sample b.jpg");
  expect_mentions(message_of<DataError>([&] { read(source, 2); }), "sample 2 is not in [0, 2)");
}

TEST_F(ImageListTest, HasAnotherFingerprintForOtherContent) {
  const auto fingerprint = [&](std::vector<ListedImage> images) {
    return ImageListSource(root_, std::move(images)).fingerprint();
  };
  const auto base = fingerprint({{"a.jpg", 0, {}}, {"b.jpg", 1, {}}});
  EXPECT_EQ(base, fingerprint({{"a.jpg", 0, {}}, {"b.jpg", 1, {}}}));
  EXPECT_NE(base, fingerprint({{"b.jpg", 1, {}}, {"a.jpg", 0, {}}}));
  EXPECT_NE(base, fingerprint({{"a.jpg", 0, {}}, {"b.jpg", 2, {}}}));
  EXPECT_NE(base, fingerprint({{"a.jpg", 0, {}}, {"b.jpg", 1, {1}}}));
  test::write_file(root_ / "b.jpg", "BBB");
  EXPECT_NE(base, fingerprint({{"a.jpg", 0, {}}, {"b.jpg", 1, {}}}));
}

TEST_F(ImageListTest, RefusesMissingAndUnreadableFiles) {
  expect_mentions(message_of<DataError>([&] { ImageListSource(root_, {}); }), "the list of images is empty");
  expect_mentions(message_of<DataError>([&] {
                    ImageListSource(root_, {{"a.jpg", 0, {}}, {"x.jpg", 0, {}}, {"y.jpg", 0, {}}});
                  }),
                  "2 of 3 image files are missing; the first is x.jpg");
  const ImageListSource source(root_, {{"a.jpg", 0, {}}, {"b.jpg", 0, {}}});
  fs::remove(root_ / "a.jpg");
  expect_mentions(message_of<DataError>([&] { read(source, 0); }), "the file can't be opened");
  fs::resize_file(root_ / "b.jpg", ImageListSource::kMaxImageBytes + 1);
  expect_mentions(message_of<DataError>([&] { read(source, 1); }), "the image has 268435457 bytes, but at most");
}

}  // namespace
}  // namespace contrastive::data
