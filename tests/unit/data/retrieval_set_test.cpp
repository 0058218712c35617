#include "contrastive/data/retrieval_set.h"

#include <gtest/gtest.h>

#include "contrastive/core/error.h"

#include "tests/support/paths.h"
#include "tests/unit/data/shard_test_support.h"

namespace contrastive::data {
namespace {

namespace fs = std::filesystem;
using test::expect_mentions;
using test::message_of;
using Texts = std::vector<std::string>;
using Numbers = std::vector<int64_t>;

class RetrievalSetTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const std::string file : {"a.jpg", "b.jpg", "val2014/c.jpg"}) {
      fs::create_directories((root_ / file).parent_path());
      test::write_file(root_ / file, file);
    }
  }

  RetrievalSet open(const std::string& name, const std::string& content) const {
    test::write_file(root_ / name, content);
    return open_retrieval_set(root_ / name, options_);
  }
  std::string message(const std::string& name, const std::string& content) const {
    return message_of<DataError>([&] { open(name, content); });
  }
  static Texts keys(const RetrievalSet& set) {
    Texts keys;
    for (int64_t i = 0; i < set.source->size(); ++i) keys.push_back(set.source->key(i));
    return keys;
  }

  test::TemporaryDirectory folder_;
  fs::path root_ = folder_.path() / "pairs";
  RetrievalSetOptions options_;
};

constexpr const char* kKarpathy = R"({"dataset": "coco", "images": [
  {"filepath": "val2014", "filename": "c.jpg", "split": "test", "sentences": [{"raw": " two\n"}, {"raw": "one"}, {"raw": " "}]},
  {"filepath": "val2014", "filename": "b.jpg", "split": "restval", "sentences": [{"raw": "three"}]},
  {"filename": "a.jpg", "split": "test", "sentences": [{"raw": "four"}]},
  {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "five"}]}]})";

TEST_F(RetrievalSetTest, ReadsASplitOfKarpathysFile) {
  auto set = open("dataset_coco.json", kKarpathy);
  EXPECT_EQ(set.name, "dataset_coco");
  EXPECT_EQ(keys(set), Texts({"val2014/c.jpg", "a.jpg"}));
  EXPECT_EQ(set.captions, Texts({"two", "one", "four"}));
  EXPECT_EQ(set.caption_image, Numbers({0, 0, 1}));
  EXPECT_EQ(open_retrieval_set(root_).captions, set.captions);
  options_.captions_per_image = 1;
  set = open_retrieval_set(root_, options_);
  EXPECT_EQ(set.captions, Texts({"two", "four"}));
  options_.split = "train";
  EXPECT_EQ(open_retrieval_set(root_, options_).captions, Texts({"five"}));
  options_.split = "train+restval";
  EXPECT_EQ(open_retrieval_set(root_, options_).captions, Texts({"three", "five"}));
  EXPECT_EQ(keys(open_retrieval_set(root_, options_)), Texts({"b.jpg", "a.jpg"}));
}

TEST_F(RetrievalSetTest, NamesWhatIsWrongInKarpathysFile) {
  options_.split = "valid";
  expect_mentions(message("k.json", kKarpathy),
                  "k.json] has no images of the split valid; splits here: restval, test, train");
  options_.split = "test";
  expect_mentions(message("k.json", "{\"images\": [{}]}"), "k.json] images[0].split is missing");
  expect_mentions(message("k.json", "{\"images\": [3]}"), "k.json] images[0]: expected an object, but is number");
  expect_mentions(message("k.json", "{\"images\": {}}"), "k.json] images: expected a list, but is object");
  expect_mentions(
      message("k.json", R"({"images": [{"split": "test", "filename": "a.jpg", "sentences": [{"raw": 1}]}]})"),
      "k.json] images[0].sentences[0].raw: expected a string, but is number");
  expect_mentions(message("k.json", R"({"images": [{"split": "test", "filename": "a.jpg", "sentences": []}]})"),
                  "k.json] the image a.jpg has no caption");
  expect_mentions(
      message("k.json", R"({"images": [{"split": "test", "filename": "x.jpg", "sentences": [{"raw": "t"}]}]})"),
      "pairs] 1 of 1 image files are missing; the first is x.jpg");
  expect_mentions(message("k.json", "3"), "k.json] the file: expected a list of images with captions");
  expect_mentions(message("k.json", "[}"), "k.json] is not valid JSON: mistake at byte 2");
  expect_mentions(message("k.json", "[]"), "k.json] holds no image with captions");
  expect_mentions(message("k.json", "[\"\xff\"]"), "k.json] is not UTF-8: wrong byte at 2");
}

TEST_F(RetrievalSetTest, ReadsListsOfImages) {
  const auto set = open("coco_test_karpathy.json",
                        R"([{"image": "val2014/c.jpg", "caption": ["x", "y"]}, {"image": "a.jpg", "caption": "z"}])");
  EXPECT_EQ(keys(set), Texts({"val2014/c.jpg", "a.jpg"}));
  EXPECT_EQ(set.captions, Texts({"x", "y", "z"}));
  EXPECT_EQ(set.caption_image, Numbers({0, 0, 1}));
  EXPECT_EQ(open_retrieval_set(root_).captions, set.captions);
}

TEST_F(RetrievalSetTest, ReadsCocosOwnFile) {
  const std::string images = R"({"images": [{"id": 7, "file_name": "c.jpg"}, {"id": 8, "file_name": "none.jpg"},
                                            {"id": 5, "file_name": "a.jpg"}], "annotations": )";
  options_.images = root_ / "val2014";
  fs::copy(root_ / "a.jpg", root_ / "val2014/a.jpg");
  auto set =
      open("captions_val2014.json", images + R"([{"image_id": 5, "caption": "late"}, {"image_id": 7, "caption": "p"},
                                                        {"image_id": 5, "caption": "later"}]})");
  EXPECT_EQ(keys(set), Texts({"c.jpg", "a.jpg"}));
  EXPECT_EQ(set.captions, Texts({"p", "late", "later"}));
  EXPECT_EQ(set.caption_image, Numbers({0, 1, 1}));
  expect_mentions(message("c.json", images + R"([{"image_id": 6, "caption": "x"}]})"),
                  "c.json] an annotation is for the image id 6, which is not among the images");
  expect_mentions(
      message("c.json", R"({"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "annotations": []})"),
      "c.json] the image id 1 is there twice");
}

TEST_F(RetrievalSetTest, ReadsCsvFiles) {
  const auto set = open("flickr30k_test_karpathy.txt",
                        "image,caption\r\nb.jpg,A man, in blue, runs\r\na.jpg,\"He said \"\"no\"\", twice\"\r\n"
                        "b.jpg,\"Stop\" says a sign, in red\r\na.jpg, \r\n");
  EXPECT_EQ(keys(set), Texts({"b.jpg", "a.jpg"}));
  EXPECT_EQ(set.captions, Texts({"A man, in blue, runs", "\"Stop\" says a sign, in red", "He said \"no\", twice"}));
  EXPECT_EQ(set.caption_image, Numbers({0, 0, 1}));
  options_.captions_per_image = 1;
  EXPECT_EQ(open_retrieval_set(root_, options_).captions, Texts({"A man, in blue, runs", "He said \"no\", twice"}));
  options_.caption_key = "what";
  EXPECT_EQ(open("x.tsv", "what\tfilepath\nhello\ta.jpg\n").captions, Texts({"hello"}));
  expect_mentions(message("x.csv", "image,caption\na.jpg,x\n"), "x.csv] has no column \"what\" (caption_key)");
}

TEST_F(RetrievalSetTest, KeepsAQuoteInItsLineIfTheNextOneIsARow) {
  auto set =
      open("x.txt",
           "image, caption\na.jpg,\"Stop said a man\nb.jpg,a sign \"go\"\na.jpg,\"two\nlines, and \"\"more\"\"\"\n"
           "b.jpg, \"A man, with hats.\"\n");
  EXPECT_EQ(set.captions,
            Texts({"\"Stop said a man", "two\nlines, and \"more\"", "a sign \"go\"", "A man, with hats."}));
  EXPECT_EQ(set.caption_image, Numbers({0, 0, 1, 1}));
  set = open("y.csv", "id,image,caption\n0,a.jpg,\"Stop\n1,\"b.jpg\",go\"\n");
  EXPECT_EQ(set.captions, Texts({"\"Stop", "go\""}));
}

TEST_F(RetrievalSetTest, SkipsBlanksBeforeAQuote) {
  EXPECT_EQ(open("x.csv", "caption,image\n \"big, man\", \"a.jpg\"\n \"so\" called,b.jpg\n").captions,
            Texts({"big, man", "\"so\" called"}));
}

TEST_F(RetrievalSetTest, SeesTheSeparatorInTheHeader) {
  for (const std::string separator : {"\t", "|", ";"}) {
    const auto set = open("x.csv", "filepath" + separator + "title\na.jpg" + separator + "a man, and more\n");
    EXPECT_EQ(set.captions, Texts({"a man, and more"}));
  }
  EXPECT_EQ(open("X.TSV", "filepath\ttitle, or so\ttitle\na.jpg\tx\ty\n").captions, Texts({"y"}));
}

TEST_F(RetrievalSetTest, KnowsJsonInAnyCase) {
  EXPECT_EQ(open("C.JSON", R"([{"image": "a.jpg", "caption": "z"}])").captions, Texts({"z"}));
}

TEST_F(RetrievalSetTest, RefusesAFileThatIsFoundForTwoImages) {
  expect_mentions(message("x.csv", "image,caption\nx/a.jpg,one\ny/a.jpg,two\n"),
                  "x.csv] the images x/a.jpg and y/a.jpg are both found as a.jpg in [");
}

TEST_F(RetrievalSetTest, TakesCaptionsFromAnotherFile) {
  test::write_file(folder_.path() / "german.csv", "image,caption\na.jpg,ein Hund\n");
  options_.captions = folder_.path() / "german.csv";
  const auto set = open_retrieval_set(root_, options_);
  EXPECT_EQ(set.captions, Texts({"ein Hund"}));
  EXPECT_EQ(set.source->describe(0), "[" + root_.string() + "] sample a.jpg");
  options_.images = folder_.path() / "nowhere";
  expect_mentions(message_of<DataError>([&] { open_retrieval_set(root_, options_); }),
                  "nowhere] the images' folder is not there");
}

TEST_F(RetrievalSetTest, NamesWhatIsMissing) {
  expect_mentions(message_of<DataError>([&] { open_retrieval_set(root_); }),
                  "pairs] there is no data set: expected .tar files, or one of dataset_coco.json, ");
  expect_mentions(message_of<DataError>([&] { open_retrieval_set(root_ / "no"); }), "no] is not a folder or file");
  test::write_file(root_ / "captions.csv", "");
  test::write_file(root_ / "dataset_coco.json", "");
  expect_mentions(message_of<DataError>([&] { open_retrieval_set(root_); }),
                  "pairs] there are several captions files: dataset_coco.json, captions.csv; name one");
  options_.captions_per_image = -1;
  expect_mentions(message_of<ConfigError>([&] { open_retrieval_set(root_, options_); }),
                  "captions_per_image: expected 0 (all) or more, but is -1");
}

TEST_F(RetrievalSetTest, ReadsShards) {
  const auto shards = folder_.path() / "shards";
  fs::create_directories(shards / "test");
  test::write_file(shards / "dataset_type.txt", "retrieval\n");
  test::write_file(shards / "test/nshards.txt", "1");
  test::write_tar(shards / "test/0.tar",
                  {{"s0.jpg", "I"}, {"s0.txt", "one\r\n\n two \n"}, {"s1.png", "P"}, {"s1.txt", "three"}});
  auto set = open_retrieval_set(shards);
  EXPECT_EQ(set.name, "shards");
  EXPECT_EQ(keys(set), Texts({"s0", "s1"}));
  EXPECT_EQ(set.captions, Texts({"one", "two", "three"}));
  EXPECT_EQ(set.caption_image, Numbers({0, 0, 1}));
  Sample sample;
  RandomStream random(0, RandomPurpose::caption, {0});
  set.source->read(1, random, sample);
  EXPECT_EQ(sample.encoded, std::vector<uint8_t>({'P'}));
  const auto error = [&] { return message_of<DataError>([&] { open_retrieval_set(shards); }); };
  test::write_tar(shards / "test/0.tar", {{"s0.jpg", "I"}, {"s0.txt", "one"}, {"s1.png", "P"}, {"s1.txt", " \n"}});
  expect_mentions(error(), "test/0.tar] sample s1: the caption is empty");
  test::write_tar(shards / "test/0.tar", {{"s0.jpg", "I"}, {"s0.txt", "one"}, {"s1.png", "P"}});
  expect_mentions(error(), "test/0.tar] sample s1: no caption: expected a member .txt; the sample has .png");
  test::write_file(shards / "dataset_type.txt", "multilabel\n");
  expect_mentions(error(), "shards] the data set is for multilabel (dataset_type.txt), expected retrieval");
}

TEST_F(RetrievalSetTest, ReadsRealShards) {
  const auto data = test::data_dir();
  if (!data) GTEST_SKIP() << "no real data; set CONTRASTIVE_DATA";
  const test::ScopedEnvironment cache("CONTRASTIVE_CACHE", folder_.path().string());
  const auto set = open_retrieval_set(*data / "noto_emoji");
  EXPECT_GT(set.source->size(), 0);
  EXPECT_EQ(static_cast<int64_t>(set.captions.size()), set.source->size());
}

}  // namespace
}  // namespace contrastive::data
