#include "contrastive/adapt/support_set.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "contrastive/adapt/label_check.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"

#include "tests/support/adapt_fixture.h"
#include "tests/support/errors.h"

namespace contrastive::adapt {
namespace {

namespace fs = std::filesystem;

class SupportSetTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(::testing::TempDir()) / ("support_set_" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path file() const { return folder_ / "set.safetensors"; }

  /// Three classes of 1, 3 and 2 rows with two views each.
  static SupportSet make_set(uint64_t seed = 40) {
    SupportSet set;
    const auto views = test::adapt_normalized(test::adapt_field(seed, 12, 8)).to(at::kFloat).reshape({6, 2, 8});
    const auto keys = views.mean(1);
    set.features =
        SupportFeatures{keys / keys.norm(2, 1, true), at::tensor(std::vector<int64_t>{0, 1, 1, 1, 2, 2}), 3, views};
    set.class_names = {"owl", "cat", "bee"};
    set.class_ids = {"n3", "n1", "n2"};
    for (int64_t i = 0; i < 6; ++i) {
      SupportSource source;
      source.data = "photos";
      source.key = "image " + std::to_string(i);
      if (i == 2) {
        source.prompt = "a photo of a cat";
        source.score = 0.1 + 0.2;
        source.note = "fallback";
      }
      set.rows.push_back(source);
    }
    set.model_sha256 = "aa";
    set.preprocess = "resized";
    set.preprocess_sha256 = "bb";
    set.made_by = {{"builder", "from-split"}, {"shots", "3"}};
    return set;
  }

  std::string manifest() const { return read_text_file(folder_ / "set.json"); }
  void replace_in_manifest(const std::string& from, const std::string& to) const {
    auto text = manifest();
    const auto at = text.find(from);
    ASSERT_NE(at, std::string::npos);
    text.replace(at, from.size(), to);
    std::ofstream(folder_ / "set.json") << text;
  }

  fs::path folder_;
};

TEST_F(SupportSetTest, ComesBackAsItWasWritten) {
  const auto set = make_set();
  write_support_set(file(), set);
  const auto read = read_support_set(file());
  EXPECT_TRUE(read.features.keys.equal(set.features.keys));
  EXPECT_TRUE(read.features.views.equal(set.features.views));
  EXPECT_TRUE(read.features.labels.equal(set.features.labels));
  EXPECT_EQ(read.class_names, set.class_names);
  EXPECT_EQ(read.class_ids, set.class_ids);
  EXPECT_EQ(read.made_by, set.made_by);
  EXPECT_EQ(read.preprocess_sha256, "bb");
  EXPECT_EQ(read.fingerprint(), set.fingerprint());
  ASSERT_EQ(read.rows.size(), 6U);
  EXPECT_EQ(read.rows[2].key, "image 2");
  EXPECT_EQ(read.rows[2].score, 0.1 + 0.2);
  EXPECT_EQ(read.rows[2].note, "fallback");
  EXPECT_TRUE(std::isnan(read.rows[3].score));
}

TEST_F(SupportSetTest, LabelsFollowTheNamesNotTheirOrder) {
  const auto set = make_set();
  const auto selected = select_classes(set, {"bee", "owl", "cat"});
  EXPECT_TRUE(selected.features.labels.equal(at::tensor(std::vector<int64_t>{0, 0, 1, 2, 2, 2})));
  EXPECT_EQ(selected.rows.front().key, "image 4");
  EXPECT_TRUE(selected.features.keys[2].equal(set.features.keys[0]));
  EXPECT_EQ(selected.class_names, (std::vector<std::string>{"bee", "owl", "cat"}));

  // Ids decide where both have them, so that a name may be another one.
  const auto by_id = select_classes(set, {"kitten", "honey bee"}, {"n1", "n2"});
  EXPECT_EQ(by_id.class_names, (std::vector<std::string>{"kitten", "honey bee"}));
  EXPECT_EQ(by_id.rows.front().key, "image 1");
  EXPECT_EQ(by_id.features.num_classes, 2);
  EXPECT_EQ(test::message_of<DataError>([&] {
              select_classes(set, {"owl", "fox", "cat", "elk"});
            }),
            "[support_set] 2 of 4 classes are not in the support set: fox, elk");
  EXPECT_EQ(test::message_of<DataError>([&] {
              select_classes(set, {"owl", "owl"});
            }),
            "[support_set] name \"owl\" stands for several classes: give every class an id");
}

TEST_F(SupportSetTest, AppendsRowsAndClasses) {
  const auto a = make_set();
  auto b = make_set(41);
  b.class_names = {"elk", "owl", "bee"};
  b.class_ids = {"n9", "n3", "n2"};
  b.features.keys[4] = a.features.keys[5];  // of the same class: "bee"
  const auto all = append(a, b);
  EXPECT_EQ(all.class_names, (std::vector<std::string>{"owl", "cat", "bee", "elk"}));
  EXPECT_TRUE(all.features.counts().equal(at::tensor(std::vector<int64_t>{4, 3, 3, 1})));
  EXPECT_EQ(all.size(), 11);
  EXPECT_TRUE(all.features.keys[10].equal(b.features.keys[0]));
  all.features.check();

  auto other = b;
  other.model_sha256 = "cc";
  EXPECT_EQ(test::message_of<DataError>([&] { append(a, other); }),
            "[support_set] the models that made the features differ: aa and cc");
}

TEST_F(SupportSetTest, KeepsTheFirstRowsOfEachClass) {
  const auto capped = cap_per_class(make_set(), 2);
  EXPECT_TRUE(capped.features.counts().equal(at::tensor(std::vector<int64_t>{1, 2, 2})));
  EXPECT_EQ(capped.rows[1].key, "image 1");
  EXPECT_EQ(capped.made_by.at("max_per_class"), "2");
  EXPECT_EQ(test::message_of<ConfigError>([] { cap_per_class(make_set(), 0); }),
            "[support_set] max_per_class must be at least 1, but is 0");
}

TEST_F(SupportSetTest, RefusesFilesThatDontBelongTogether) {
  write_support_set(file(), make_set());
  const auto old_manifest = manifest();
  write_support_set(file(), make_set(42));
  std::ofstream(folder_ / "set.json") << old_manifest;
  EXPECT_NE(test::message_of<CheckpointError>([&] { read_support_set(file()); }).find("isn't the file that"),
            std::string::npos);

  write_support_set(file(), make_set());
  replace_in_manifest("\"format\": 1", "\"format\": 2");
  EXPECT_NE(test::message_of<CheckpointError>([&] {
              read_support_set(file());
            }).find("has format 2, but this library reads 1"),
            std::string::npos);

  write_support_set(file(), make_set());
  replace_in_manifest("\"key\": \"image 3\"", "\"kex\": 3");
  EXPECT_NE(test::message_of<CheckpointError>([&] { read_support_set(file()); }).find("is malformed"),
            std::string::npos);

  write_support_set(file(), make_set());
  std::ofstream(folder_ / "set.json") << manifest().substr(0, 300);
  EXPECT_NE(test::message_of<CheckpointError>([&] { read_support_set(file()); }).find("is malformed"),
            std::string::npos);
  EXPECT_EQ(test::message_of<ConfigError>([] { write_support_set("set.pt", make_set()); }),
            "[support_set] the file must end in .safetensors, but is set.pt");
}

TEST_F(SupportSetTest, RefusesWhatNoAdapterCouldUse) {
  auto nan = make_set();
  nan.features.keys[1][1] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(test::message_of<DataError>([&] { write_support_set(file(), nan); }),
            "[support_features] keys must be finite, but row 1 of 6 isn't");
  auto empty = make_set();
  empty.class_names.emplace_back("fox");
  empty.class_ids.emplace_back("n4");
  empty.features.num_classes = 4;
  EXPECT_EQ(test::message_of<DataError>([&] { write_support_set(file(), empty); }),
            "[support_features] every class needs a row, but 1 of 4 have none: classes 3");
  EXPECT_FALSE(fs::exists(file()));
  EXPECT_EQ(test::message_of<DataError>([] { require_model(make_set(), "dd", "bb"); }),
            "[support_set] its features are of the model aa, but this one is dd");
  EXPECT_EQ(test::message_of<DataError>([] { require_model(make_set(), "aa", "dd"); }),
            "[support_set] its images were preprocessed otherwise (resized): sha256 bb, but here dd");
}

TEST_F(SupportSetTest, LabelsInAnotherOrderAreNoticed) {
  const auto f = test::adapt_fixture(5, 32, 10, 8, 10);
  TextClassifier classifier;
  classifier.weights = f.weights;
  const SupportFeatures support{f.keys, f.labels, 10, {}};
  const auto right = check_labels(support, classifier);
  EXPECT_GT(right.support_accuracy, 0.5);
  require_sane_labels(right, 0.6, 1000);

  auto shifted = support;
  shifted.keys = support.keys.roll(8, 0);  // as if the folders had been sorted otherwise
  const auto wrong = check_labels(shifted, classifier);
  EXPECT_TRUE(wrong.is_near_chance);
  EXPECT_NE(test::message_of<DataError>([&] { require_sane_labels(wrong, 0.6, 1000); }).find("seem to be wrong"),
            std::string::npos);
  require_sane_labels(wrong, 0.1, 1000);  // the test images are no better
}

}  // namespace
}  // namespace contrastive::adapt
