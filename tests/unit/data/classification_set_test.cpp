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
    test::write_tar(root_ / "test/1.tar", {{"s2.png", "P"}, {"s2.cls", " 1\n"}});
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
  EXPECT_EQ(read(set, 2).label, 1);
  EXPECT_FALSE(set.is_multi_label);
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
  expect_mentions(error(), "pets/test] classnames.txt is missing here and in its parent; class_names may name a file");
  SetUp();
  fs::remove(root_ / "test/1.tar");
  expect_mentions(error(), "test/nshards.txt] says there are 2 shards: ");
  expect_mentions(error(), "test/1.tar (No such file or directory)");
  expect_mentions(message_of<DataError>([&] { open_classification_folder(root_, "val"); }),
                  "pets] there are no shards of the split val; splits here: test");
  expect_mentions(message_of<DataError>([&] { open_classification_folder(root_ / "none"); }),
                  "none] is not a folder or file; expected a data set");
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
  expect_mentions(
      error(),
      "pets] the data set is for retrieval (dataset_type.txt), expected classification: use the retrieval task");
}

TEST_F(ClassificationSetTest, OpensShardsWithoutTemplatesAndWithoutTheirNumber) {
  fs::remove(root_ / "zeroshot_classification_templates.txt");
  fs::remove(root_ / "test/nshards.txt");
  const auto set = open_classification_set(root_);
  EXPECT_TRUE(set.templates.empty());
  EXPECT_EQ(set.source->size(), 3);
}

TEST_F(ClassificationSetTest, FindsEveryLabelOutsideTheNames) {
  test::write_tar(root_ / "test/1.tar", {{"s2.png", "P"}, {"s2.cls", "2"}});
  expect_mentions(error(), "test/1.tar] sample s2: the label is 2, but [");
  expect_mentions(error(), "classnames.txt] has 2 class names: expected [0, 2)");
  test::write_tar(root_ / "test/1.tar", {{"s2.png", "P"}, {"s2.cls", "-1"}});
  expect_mentions(error(), "sample s2: the label is -1, but [");
  // Not an integer at all: a bad sample, not a bad names file.
  test::write_tar(root_ / "test/1.tar", {{"s2.png", "P"}, {"s2.cls", "dog"}});
  const auto set = open_classification_set(root_);
  expect_mentions(message_of<DataError>([&] { read(set, 2); }), "the label should be an integer");
}

TEST_F(ClassificationSetTest, ComparesTheNamesWithTheSamplesTexts) {
  const auto write = [&](const std::string& text) {
    test::write_tar(root_ / "test/1.tar", {{"s2.png", "P"}, {"s2.txt", text}, {"s2.cls", "1"}});
  };
  for (const std::string text : {"big dog", " Big_Dog\n", "a photo of a cat", ""}) {
    write(text);
    EXPECT_NO_THROW(open_classification_set(root_)) << text;
  }
  write("Cat\n");
  expect_mentions(error(), "test/1.tar] sample s2: the label is 1, which is \"big dog\" in [");
  expect_mentions(error(), "classnames.txt], but the sample's .txt says \"Cat\", another class");
  test::write_file(root_ / "classnames.txt", "cat\ncat\n");
  EXPECT_NO_THROW(open_classification_set(root_));
}

TEST_F(ClassificationSetTest, TakesNamesAndIdsFromOtherFiles) {
  test::write_file(root_ / "other.txt", "kitten\npuppy\nbird\n");
  ClassificationSetOptions options;
  options.class_names = root_ / "other.txt";
  EXPECT_EQ(open_classification_set(root_, options).class_names, std::vector<std::string>({"kitten", "puppy", "bird"}));
  options.class_ids = root_ / "ids.txt";
  test::write_file(root_ / "ids.txt", "n00000001 cat\nn00000002\tdog\n");
  expect_mentions(message_of<DataError>([&] { open_classification_set(root_, options); }),
                  "other.txt] has 3 class names, but [");
  test::write_file(root_ / "ids.txt", "n00000001\nn00000001\n");
  expect_mentions(message_of<DataError>([&] { open_classification_set(root_, options); }),
                  "ids.txt] line 2: the class id n00000001 is there already in line 1");
  test::write_file(root_ / "ids.txt", "n00000002\nn00000001\n");
  test::write_file(root_ / "other.txt", "n00000001 tench, Tinca tinca\nn00000002\tgold fish\r\n");
  const auto set = open_classification_set(root_, options);
  EXPECT_EQ(set.class_names, std::vector<std::string>({"gold fish", "tench"}));
  EXPECT_EQ(set.class_ids, std::vector<std::string>({"n00000002", "n00000001"}));
  test::write_file(root_ / "ids.txt", "n00000002\nn00000003\n");
  expect_mentions(message_of<DataError>([&] { open_classification_set(root_, options); }),
                  "other.txt] has no name for the class id n00000003 of [");
}

TEST_F(ClassificationSetTest, TakesTheLibrarysNames) {
  const test::ScopedEnvironment resources("CONTRASTIVE_RESOURCES", folder_.path().string());
  fs::create_directories(folder_.path() / "imagenet");
  test::write_file(folder_.path() / "imagenet/classnames.txt", "a\nb\nc\n");
  ClassificationSetOptions options;
  options.class_names = "imagenet";
  EXPECT_EQ(open_classification_set(root_, options).class_names.size(), 3U);
}

TEST_F(ClassificationSetTest, ReadsNamesInJson) {
  ClassificationSetOptions options;
  options.class_names = root_ / "names.json";
  const auto names_of = [&](const std::string& json) {
    test::write_file(root_ / "names.json", json);
    return open_classification_set(root_, options);
  };
  auto set = names_of(R"({"1": ["n2", "gold fish"], "0": ["n1", "tench"]})");
  EXPECT_EQ(set.class_names, std::vector<std::string>({"tench", "gold fish"}));
  EXPECT_EQ(set.class_ids, std::vector<std::string>({"n1", "n2"}));
  set = names_of(R"({"n2": "gold fish", "n1": "tench"})");
  EXPECT_EQ(set.class_names, std::vector<std::string>({"tench", "gold fish"}));
  const auto message = [&](const std::string& json) { return message_of<DataError>([&] { names_of(json); }); };
  expect_mentions(message("{\"0\": "), "names.json] is not valid JSON: mistake at byte ");
  expect_mentions(message("[]"), "names.json] holds no class name");
  expect_mentions(message("3"), "names.json] the file: expected an object or a list of class names, but is number");
  expect_mentions(message("[\"a\", 3]"), "names.json] name 2: expected a class name, but is number");
  expect_mentions(message("{}"), "names.json] holds no class name");
  expect_mentions(message(R"({"0": ["n1", "a"], "2": ["n2", "b"]})"), "key \"2\": expected the numbers 0 to 1");
  expect_mentions(message(R"({"0": ["n1"]})"), "key \"0\": expected a list of an id and a name, but is array");
  expect_mentions(message(R"({"n1": 3})"), "key \"n1\": expected a class name, but is number");
  expect_mentions(message(R"({"n1": " "})"), "key \"n1\": the class name is empty");
}

TEST_F(ClassificationSetTest, OrdersNumberedNamesInJsonByNumber) {
  ClassificationSetOptions options;
  options.class_names = root_ / "NAMES.JSON";
  const auto names_of = [&](const std::string& json) {
    test::write_file(root_ / "NAMES.JSON", json);
    return open_classification_set(root_, options);
  };
  std::string json = "{\"11\": \"name 11\"";
  std::vector<std::string> expected;
  for (int i = 0; i <= 11; ++i) expected.push_back("name " + std::to_string(i));
  for (int i = 0; i <= 10; ++i) json += ", \"" + std::to_string(i) + "\": \"name " + std::to_string(i) + "\"";
  const auto set = names_of(json + "}");
  EXPECT_EQ(set.class_names, expected);
  EXPECT_TRUE(set.class_ids.empty());
  expect_mentions(message_of<DataError>([&] { names_of(R"({"1": "a", "2": "b"})"); }),
                  "NAMES.JSON] key \"2\": expected the numbers 0 to 1, each once");
  EXPECT_EQ(names_of(R"(["tench", " gold_fish "])").class_names, std::vector<std::string>({"tench", "gold_fish"}));
  EXPECT_EQ(names_of(R"({"1": ["n2", "great_white_shark"], "0": ["n1", "tench"]})").class_names,
            std::vector<std::string>({"tench", "great white shark"}));
}

/// A .npy file of format version 1.
std::string npy(const std::string& descriptor, const std::string& shape, const std::string& data) {
  const std::string header = "{'descr': '" + descriptor + "', 'fortran_order': False, 'shape': " + shape + ", }\n";
  const std::string length{static_cast<char>(header.size()), '\0'};
  return "\x93NUMPY" + std::string("\x01\x00", 2) + length + header + data;
}

TEST_F(ClassificationSetTest, ReadsMultiLabelSets) {
  using namespace std::string_literals;
  test::write_file(root_ / "dataset_type.txt", "multilabel\n");
  test::write_file(root_ / "classnames.txt", "a\nb\nc\n");
  test::write_file(root_ / "test/nshards.txt", "1");
  fs::remove(root_ / "test/1.tar");
  const std::string one_f4 = "\x00\x00\x80\x3f"s;
  const std::string zero_f4 = "\0\0\0\0"s;
  const std::string i8_one = "\1\0\0\0\0\0\0\0"s;
  test::write_tar(root_ / "test/0.tar",
                  {{"s0.jpg", "I"}, {"s0.npy", npy("|b1", "(3,)", "\1\0\1"s)},
                   {"s1.jpg", "I"}, {"s1.npy", npy("<f4", "(3,)", zero_f4 + one_f4 + zero_f4)},
                   {"s2.jpg", "I"}, {"s2.npy", npy("<i8", "(3,)", std::string(16, '\0') + i8_one)},
                   {"s3.jpg", "I"}, {"s3.npy", npy("|u1", "(2,)", "\0\1"s)},
                   {"s4.jpg", "I"}, {"s4.npy", npy("|u1", "(3,)", "\0\1\2"s)},
                   {"s5.jpg", "I"}, {"s5.npy", npy("|u1", "(3,)", "\0\1"s)},
                   {"s6.jpg", "I"}, {"s6.npy", npy("<c8", "(3,)", "")},
                   {"s7.jpg", "I"}, {"s7.npy", npy("|u1", "(3, 1)", "\0\1\1"s)},
                   {"s8.jpg", "I"}, {"s8.npy", "junk"},
                   {"s9.jpg", "I"}, {"s9.cls", "1"},
                   {"t0.jpg", "I"}, {"t0.npy", npy("|u1", "(3,)", "\0\0\0"s)}});
  const auto set = open_classification_set(root_);
  EXPECT_TRUE(set.is_multi_label);
  EXPECT_EQ(read(set, 0).labels, std::vector<int64_t>({0, 2}));
  EXPECT_EQ(read(set, 0).label, -1);
  EXPECT_EQ(read(set, 1).labels, std::vector<int64_t>({1}));
  EXPECT_EQ(read(set, 2).labels, std::vector<int64_t>({2}));
  EXPECT_TRUE(read(set, 10).labels.empty());
  const auto message = [&](int64_t i) { return message_of<DataError>([&] { read(set, i); }); };
  EXPECT_EQ(message(3), "the .npy member has 2 values, but there are 3 class names: expected one each");
  EXPECT_EQ(message(4), "the .npy member should hold 0 and 1 only, but value 2 is neither");
  EXPECT_EQ(message(5), "the .npy member has 2 bytes of values, but 3 values of 1 bytes are announced");
  EXPECT_EQ(message(6), "the .npy member should hold bools, integers or floats, but its dtype is <c8");
  EXPECT_EQ(message(7), "the .npy member should be a vector, but its shape is (3, 1)");
  EXPECT_EQ(message(8), "the .npy member is no NumPy array");
  EXPECT_EQ(message(9), "no label: expected a member .npy; the sample has .jpg, .cls");
}

class LabelsFileTest : public ClassificationSetTest {
 protected:
  void SetUp() override {
    ClassificationSetTest::SetUp();
    test::write_tar(root_ / "test/0.tar", {{"s1.jpg", "I"}, {"s1.cls", "1"}, {"s2.webp", "W"}, {"s2.cls", "0"}});
    test::write_tar(root_ / "test/1.tar", {{"s3.png", "P"}, {"s3.cls", "1"}});
  }

  ClassificationSet open(const std::string& json) const {
    test::write_file(root_ / "real.json", json);
    ClassificationSetOptions options;
    options.labels = root_ / "real.json";
    return open_classification_set(root_, options);
  }
  std::string message(const std::string& json) const {
    return message_of<DataError>([&] { open(json); });
  }
};

TEST_F(LabelsFileTest, GivesSamplesListsOfLabels) {
  auto set = open("[[1, 0, 1], [], 1]");
  EXPECT_TRUE(set.is_multi_label);
  EXPECT_EQ(read(set, 0).labels, std::vector<int64_t>({0, 1}));
  EXPECT_EQ(read(set, 0).label, -1);
  EXPECT_TRUE(read(set, 1).labels.empty());
  EXPECT_EQ(read(set, 2).labels, std::vector<int64_t>({1}));
  const auto fingerprint = set.source->fingerprint();
  EXPECT_NE(open("[[1, 0], [], 0]").source->fingerprint(), fingerprint);
  set = open(R"({"s3": [0], "s1": 1, "s2": []})");
  EXPECT_EQ(read(set, 0).labels, std::vector<int64_t>({1}));
  EXPECT_EQ(read(set, 2).labels, std::vector<int64_t>({0}));
}

TEST_F(LabelsFileTest, RefusesWhatDoesNotFit) {
  expect_mentions(message("[[0]]"), "real.json] has labels of 1 samples, but the set has 3 samples");
  expect_mentions(message("[[0], [2], []]"), "real.json] sample s2: the label is 2, but there are 2 class names");
  expect_mentions(message("[[0], [-1], []]"), "sample s2: the label is -1");
  expect_mentions(message("[[0], [18446744073709551615], []]"), "sample s2: the label is -1");
  expect_mentions(message("[[0], [0.5], []]"), "sample s2: expected class indices, but is number");
  expect_mentions(message("[[0], null, []]"), "sample s2: expected class indices, but is null");
  expect_mentions(message("3"), "the file: expected a list of lists of class indices");
  expect_mentions(message(R"({"s1": 0, "s2": 0, "x": 1})"), "has no labels for the sample s3");
}

TEST_F(LabelsFileTest, SurvivesDeepNesting) {
  const auto deep = std::string(200'000, '[') + std::string(200'000, ']');
  expect_mentions(message("[[0], " + deep + ", []]"), "sample s2: expected class indices, but is array");
  expect_mentions(message("[[0], {\"a\": " + deep + "}, []]"), "sample s2: expected class indices, but is object");
}

TEST_F(LabelsFileTest, TakesAListByTheSamplesNumbers) {
  const auto shard = [&](const std::string& a, const std::string& b, const std::string& c) {
    test::write_file(root_ / "test/nshards.txt", "1");
    fs::remove(root_ / "test/1.tar");
    test::write_tar(root_ / "test/0.tar", {{a + ".jpg", "I"}, {b + ".jpg", "I"}, {c + ".jpg", "I"}});
  };
  shard("val_00000003", "val_00000001", "val_00000002");
  const auto set = open("[[0], [1], [0, 1]]");
  EXPECT_EQ(read(set, 0).labels, std::vector<int64_t>({0, 1}));
  EXPECT_EQ(read(set, 1).labels, std::vector<int64_t>({0}));
  EXPECT_EQ(read(set, 2).labels, std::vector<int64_t>({1}));
  shard("s0", "s1", "s2");
  expect_mentions(
      message("[[0], [1], []]"),
      "real.json] is a list, but the sample s0 doesn't end in a number from 1 to 3 that would tell its place "
      "there: use an object by file name or key");
  shard("1", "cat", "2");
  expect_mentions(message("[[0], [1], []]"), "the sample cat doesn't end in a number from 1 to 3");
  shard("1", "s99999999999999999999999", "2");
  expect_mentions(message("[[0], [1], []]"), "99 doesn't end in a number from 1 to 3");
  shard("a1", "b1", "c2");
  expect_mentions(message("[[0], [1], []]"), "the samples a1 and b1 end in the same number");
}

TEST_F(LabelsFileTest, RefusesAnEntryForTwoSamples) {
  test::write_file(root_ / "test/nshards.txt", "1");
  fs::remove(root_ / "test/1.tar");
  test::write_tar(root_ / "test/0.tar", {{"a/1.png", "I"}, {"b/1.png", "I"}});
  expect_mentions(message(R"({"1": [0], "2": [1]})"), "real.json] the samples a/1 and b/1 have the same file name");
  EXPECT_EQ(read(open(R"({"1": [0], "b/1": [1]})"), 1).labels, std::vector<int64_t>({1}));
}

class ClassFoldersTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const std::string file : {"cat/b.JPG", "cat/a.png", "cat/deep/0.webp", "cat/.hidden.jpg", "cat/notes.txt",
                                   "big_dog/x.gif", "big_dog/y.Bmp", "Ant/1.jpeg", ".cache/1.jpg"}) {
      fs::create_directories((root_ / file).parent_path());
      test::write_file(root_ / file, file);
    }
  }

  ClassificationSet open() const { return open_classification_set(root_, options_); }
  std::string error() const {
    return message_of<DataError>([&] { open(); });
  }
  static std::vector<std::string> keys(const ClassificationSet& set) {
    std::vector<std::string> keys;
    for (int64_t i = 0; i < set.source->size(); ++i) keys.push_back(set.source->key(i));
    return keys;
  }
  static std::vector<int64_t> labels(const ClassificationSet& set) {
    std::vector<int64_t> labels;
    for (int64_t i = 0; i < set.source->size(); ++i) {
      Sample sample;
      RandomStream random(0, RandomPurpose::caption, {i});
      set.source->read(i, random, sample);
      labels.push_back(sample.label);
      EXPECT_EQ(std::string(sample.encoded.begin(), sample.encoded.end()), set.source->key(i));
    }
    return labels;
  }

  test::TemporaryDirectory folder_;
  fs::path root_ = folder_.path() / "pets";
  ClassificationSetOptions options_;
};

TEST_F(ClassFoldersTest, ListsClassesAndImagesInTorchvisionsOrder) {
  const auto set = open();
  EXPECT_EQ(set.name, "pets");
  EXPECT_EQ(set.class_names, std::vector<std::string>({"Ant", "big_dog", "cat"}));
  EXPECT_EQ(set.class_ids, set.class_names);
  EXPECT_EQ(keys(set), std::vector<std::string>({"Ant/1.jpeg", "big_dog/x.gif", "big_dog/y.Bmp", "cat/a.png",
                                                 "cat/b.JPG", "cat/deep/0.webp"}));
  EXPECT_EQ(labels(set), std::vector<int64_t>({0, 1, 1, 2, 2, 2}));
  EXPECT_EQ(set.source->describe(0), "[" + root_.string() + "] sample Ant/1.jpeg");
}

TEST_F(ClassFoldersTest, ReadsASplitAndFollowsLinks) {
  fs::create_directories(root_ / "test");
  fs::create_directory_symlink("../cat", root_ / "test/linked");
  EXPECT_EQ(open().class_names, std::vector<std::string>({"linked"}));
  fs::create_directory_symlink("..", root_ / "cat/round");
  expect_mentions(error(), "] the link leads back to a folder that it lies in");
}

TEST_F(ClassFoldersTest, RefusesAnotherSplitAndEmptyFolders) {
  fs::create_directories(root_ / "train/cat");
  expect_mentions(error(), "pets] there is no split test; splits here: train");
  fs::remove_all(root_ / "train");
  fs::create_directories(root_ / "empty/deep");
  expect_mentions(error(), "pets] the class folder empty holds no image (.jpg, .jpeg");
  fs::remove_all(root_);
  fs::create_directories(root_);
  expect_mentions(error(), "pets] there is no data set: expected test/nshards.txt or nshards.txt with .tar files");
}

TEST_F(ClassFoldersTest, GivesNamesInSortedOrder) {
  test::write_file(root_ / "classnames.txt", "an ant\r\na dog\r\na cat\r\n");
  EXPECT_EQ(open().class_names, std::vector<std::string>({"an ant", "a dog", "a cat"}));
  test::write_file(root_ / "classnames.txt", "an ant\na dog\n");
  expect_mentions(error(), "pets] there are 3 class folders, but [");
  expect_mentions(error(), "classnames.txt] has 2 class names: expected one a folder, or class_ids");
  test::write_file(root_ / "classnames.txt", "ant\ncat\nbig dog\n");
  expect_mentions(error(),
                  "classnames.txt] line 2 is \"cat\", but class folder 2 in sorted order is big_dog, and there "
                  "is a folder cat at 3");
  options_.class_ids = root_ / "ids";
  test::write_file(root_ / "ids", "Ant\ncat\nbig_dog\n");
  EXPECT_EQ(open().class_names, std::vector<std::string>({"ant", "cat", "big dog"}));
  EXPECT_EQ(labels(open()), std::vector<int64_t>({0, 1, 1, 1, 2, 2}));
}

TEST_F(ClassFoldersTest, TakesTheSubsetThatThereAreFoldersOf) {
  test::write_file(root_ / "LOC_synset_mapping.txt",
                   "cat\thouse cat, Felis\nn00000001 other\nbig_dog\tdog\nn00000002 more\nAnt\tant, emmet\n");
  const auto set = open();
  EXPECT_EQ(set.class_names, std::vector<std::string>({"house cat", "dog", "ant"}));
  EXPECT_EQ(set.class_ids, std::vector<std::string>({"cat", "big_dog", "Ant"}));
  EXPECT_EQ(labels(set), std::vector<int64_t>({0, 0, 0, 1, 1, 2}));
  options_.class_names = root_ / "map.json";
  test::write_file(root_ / "map.json", R"({"0": ["cat", "a"], "1": ["big_dog", "b"]})");
  expect_mentions(error(), "pets] the class folder Ant is not among the 2 class ids of [");
}

/// Folders "0" to "11", or from `first` on.
class NumberedFoldersTest : public ClassFoldersTest {
 protected:
  void SetUp() override { make(0); }

  void make(int first) {
    fs::remove_all(root_);
    expected_.clear();
    for (int i = 0; i < 12; ++i) {
      const auto folder = std::to_string(first + i);
      fs::create_directories(root_ / folder);
      test::write_file(root_ / folder / "x.png", folder + "/x.png");
      expected_.push_back("name " + std::to_string(i));
    }
  }

  std::string lines() const {
    std::string text;
    for (const auto& name : expected_) text += name + "\n";
    return text;
  }

  std::vector<std::string> expected_;
};

TEST_F(NumberedFoldersTest, GivesNamesWithoutIdsByValue) {
  for (const int first : {0, 1}) {
    make(first);
    test::write_file(root_ / "classnames.txt", lines());
    const auto set = open();
    EXPECT_EQ(set.class_names, expected_);
    EXPECT_EQ(set.class_ids[2], std::to_string(first + 2));
    EXPECT_EQ(keys(set)[11], std::to_string(first + 11) + "/x.png");
  }
  fs::remove(root_ / "classnames.txt");
  EXPECT_EQ(open().class_names[1], "10");
}

TEST_F(NumberedFoldersTest, TakesIndicesForFoldersIfTheIdsAreOthers) {
  std::string text;
  for (int i = 0; i < 12; ++i)
    text += "n000000" + std::to_string(10 + i) + " " + expected_[static_cast<size_t>(i)] + "\n";
  test::write_file(root_ / "LOC_synset_mapping.txt", text);
  const auto set = open();
  EXPECT_EQ(set.class_names, expected_);
  EXPECT_EQ(keys(set)[2], "2/x.png");
}

TEST_F(NumberedFoldersTest, FindsFoldersByTheNumbersInJson) {
  make(1);
  fs::remove_all(root_ / "3");
  std::string json;
  for (int i = 20; i > 0; --i) json += (json.empty() ? "{\"" : ", \"") + std::to_string(i) + "\": \"flower\"";
  options_.class_names = root_ / "cat_to_name.json";
  test::write_file(root_ / "cat_to_name.json", json + "}");
  const auto set = open();
  EXPECT_EQ(set.class_ids, std::vector<std::string>({"1", "2", "4", "5", "6", "7", "8", "9", "10", "11", "12"}));
  EXPECT_EQ(set.class_names[10], "flower");
  EXPECT_EQ(keys(set)[10], "12/x.png");
}

TEST_F(ClassFoldersTest, EndsIdsThatAreNotOfWordnetAtATabOnly) {
  fs::remove_all(root_ / "Ant");
  test::write_file(root_ / "classnames.txt", "big_dog tumor\ncat tumor\n");
  EXPECT_EQ(open().class_names, std::vector<std::string>({"big_dog tumor", "cat tumor"}));
  fs::rename(root_ / "cat", root_ / "cat one");
  test::write_file(root_ / "classnames.txt", "cat one\ta cat, Felis\nbig_dog\tdog\n");
  EXPECT_EQ(open().class_names, std::vector<std::string>({"a cat", "dog"}));
}

TEST_F(ClassFoldersTest, KnowsSplitsByOtherNamesAndInAnyCase) {
  for (const std::string split : {"Training", "Testing", "eval", "DEV", "trainval", "Valid", "validation"}) {
    fs::create_directories(root_ / split / "cat");
    expect_mentions(error(), "pets] there is no split test; splits here: " + split);
    options_.split = split;
    expect_mentions(error(), "pets/" + split + "] the class folder cat holds no image");
    options_.split = "test";
    fs::remove_all(root_ / split);
  }
}

TEST_F(ClassFoldersTest, PassesOverStrayArchives) {
  test::write_tar(root_ / "cat/x.tar", {{"s0.jpg", "I"}});
  EXPECT_EQ(open().source->size(), 6);
  fs::create_directories(root_ / "archives");
  fs::create_directories(root_ / "test/a");
  test::write_tar(root_ / "archives/x.tar", {{"s0.jpg", "I"}});
  test::write_file(root_ / "test/a/1.png", "a/1.png");
  EXPECT_EQ(keys(open()), std::vector<std::string>({"a/1.png"}));
  options_.split = "val";
  expect_mentions(error(), "pets] there are no shards of the split val; splits here: archives");
  test::write_tar(root_ / "cat/0.tar", {{"s0.jpg", "I"}});
  expect_mentions(error(), "splits here: archives, cat");
}

TEST_F(ClassFoldersTest, RefusesImagesThatCanNotBeDecoded) {
  for (const std::string name : {"c.tif", "c.TIFF", "c.ppm", "c.pgm", "c.avif", "c.HEIC"}) {
    test::write_file(root_ / "cat" / name, "I");
    expect_mentions(error(),
                    "pets] the image cat/" + name +
                        " is of a format that can't be decoded: expected .jpg, .jpeg, .png, .webp, .gif, .bmp");
    fs::remove(root_ / "cat" / name);
  }
}

TEST_F(ClassFoldersTest, RefusesFolderNamesThatAreNotUtf8) {
  fs::create_directories(root_ / "caf\xe9");
  expect_mentions(error(), "pets] the name of the folder \"caf\\xe9\" is not UTF-8");
}

TEST_F(ClassFoldersTest, FindsAFlatSplitBesideClassFolders) {
  const auto data = folder_.path() / "flat";
  for (const std::string file : {"train/cat/1.png", "val/2.png", "val/1.png"}) {
    fs::create_directories((data / file).parent_path());
    test::write_file(data / file, file);
  }
  options_.labels = folder_.path() / "real.json";
  options_.split = "val";
  test::write_file(folder_.path() / "real.json", "[[1], [0]]");
  expect_mentions(message_of<DataError>([&] { open_classification_set(data, options_); }),
                  "classnames.txt is missing here and in its parent");
  test::write_file(folder_.path() / "classnames.txt", "a\nb\n");
  const auto set = open_classification_set(data, options_);
  EXPECT_EQ(set.class_names, std::vector<std::string>({"a", "b"}));
  EXPECT_EQ(keys(set), std::vector<std::string>({"1.png", "2.png"}));
  options_.labels.clear();
  EXPECT_EQ(open_classification_set(data / "train", options_).class_names, std::vector<std::string>({"cat"}));
}

TEST_F(ClassFoldersTest, TakesLabelsOfAFlatFolderFromAFile) {
  const auto flat = folder_.path() / "flat";
  fs::create_directories(flat);
  for (const std::string file : {"val_2.JPEG", "val_1.JPEG"}) test::write_file(flat / file, file);
  test::write_file(flat / "classnames.txt", "a\nb\n");
  test::write_file(flat / "real.json", R"({"val_1.JPEG": [1], "val_2.JPEG": [0, 1]})");
  ClassificationSetOptions options;
  options.labels = flat / "real.json";
  const auto set = open_classification_set(flat, options);
  EXPECT_EQ(keys(set), std::vector<std::string>({"val_1.JPEG", "val_2.JPEG"}));
  Sample sample;
  RandomStream random(0, RandomPurpose::caption, {0});
  set.source->read(1, random, sample);
  EXPECT_EQ(sample.labels, std::vector<int64_t>({0, 1}));
}

class ClassificationCsvTest : public ClassFoldersTest {
 protected:
  ClassificationSet open_csv(const std::string& content, const char* name = "list.csv") const {
    test::write_file(root_ / name, content);
    return open_classification_set(root_ / name, options_);
  }
  std::string message(const std::string& content) const {
    return message_of<DataError>([&] { open_csv(content); });
  }
};

TEST_F(ClassificationCsvTest, ReadsNamesFromTheLabelsOrAFile) {
  auto set = open_csv("\xef\xbb\xbfid,label,filepath\r\n1,\"dog, big\",cat/a.png\r\n\r\n2,cat,Ant/1.jpeg\r\n");
  EXPECT_EQ(set.name, "list");
  EXPECT_EQ(set.class_names, std::vector<std::string>({"cat", "dog, big"}));
  EXPECT_EQ(labels(set), std::vector<int64_t>({1, 0}));
  EXPECT_EQ(keys(set), std::vector<std::string>({"cat/a.png", "Ant/1.jpeg"}));
  set = open_csv("image\tclass\ncat/a.png\tb\n", "list.tsv");
  EXPECT_EQ(set.class_names, std::vector<std::string>({"b"}));
  test::write_file(root_ / "classnames.txt", "crane\ndog\ncrane\n");
  EXPECT_EQ(labels(open_csv("image,label\ncat/a.png,2\ncat/b.JPG,dog\n")), std::vector<int64_t>({2, 1}));
  options_.image_key = "where";
  options_.label_key = "what";
  options_.separator = ";";
  EXPECT_EQ(labels(open_csv("what;where\n1;cat/a.png\n")), std::vector<int64_t>({1}));
}

TEST_F(ClassificationCsvTest, NamesTheLineThatIsWrong) {
  expect_mentions(message("image,label\ncat/a.png,3\n"),
                  "list.csv] line 2: the label is the index 3, but there are no");
  for (const std::string number : {"0.0", "-1.5", "1e3"}) {
    expect_mentions(message("image,label\ncat/a.png," + number + "\n"),
                    "list.csv] line 2: the label is the number " + number + ", but expected a class's name");
  }
  EXPECT_EQ(open_csv("image,label\ncat/a.png,nan\ncat/a.png,3d\n").class_names,
            std::vector<std::string>({"3d", "nan"}));
  expect_mentions(message("image,label\ncat/a.png,\n"), "list.csv] line 2: the label is empty");
  expect_mentions(message("image,label\n"), "list.csv] has a header line only");
  expect_mentions(message(""), "list.csv] is empty; expected a header line");
  expect_mentions(message("a,label\nx,y\n"),
                  "list.csv] has none of the columns image, filepath, path, filename; choose "
                  "one of its columns by image_key: a, label");
  expect_mentions(message("image,label\n\nx\n"), "list.csv] line 3: expected 2 values as in the header, but found 1");
  expect_mentions(message("image,label\n\"x,y\n"), "list.csv] line 2: a quote is not closed");
  expect_mentions(message("image,label\n\"x\"y,z\n"), "list.csv] line 2: text follows a closing quote");
  expect_mentions(message("image,label\ncat/a.png,x\nno.jpg,x\nalso.jpg,x\n"),
                  "pets] 2 of 3 image files are missing; the first is no.jpg");
  test::write_file(root_ / "classnames.txt", "crane\ndog\ncrane\n");
  expect_mentions(message("image,label\ncat/a.png,3\n"), "line 2: the label is 3, but there are 3 class names");
  expect_mentions(message("image,label\ncat/a.png,cow\n"), "the label \"cow\" is none of the 3 class names or ids");
  expect_mentions(message("image,label\ncat/a.png,crane\n"), "\"crane\" is the name of the classes 0 and 2");
  options_.label_key = "nope";
  expect_mentions(message("image,label\na,b\n"), "has no column \"nope\" (label_key); its columns are: image, label");
  options_.separator = "ab";
  expect_mentions(message_of<ConfigError>([&] { open_csv("image,label\na,b\n"); }),
                  "separator: expected one character or tab, but is \"ab\"");
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
