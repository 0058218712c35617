#include "contrastive/adapt/retrieval.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "contrastive/core/error.h"
#include "contrastive/core/safetensors.h"

#include "tests/support/adapt_fixture.h"
#include "tests/support/errors.h"

namespace contrastive::adapt {
namespace {

namespace fs = std::filesystem;

class SupportRetrievalTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(::testing::TempDir()) / ("support_retrieval_" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  /// As clip_embed writes it; names are "<name>0", "<name>1", ...
  fs::path write_index(const std::string& name, const torch::Tensor& rows, const std::string& model = "aa",
                       const std::string& normalized = "yes", int64_t extra_names = 0) {
    const auto folder = folder_ / name;
    fs::create_directories(folder);
    write_safetensors(folder / "features.safetensors", {{"features", rows}},
                      {{"kind", "images"}, {"normalized", normalized}, {"model_sha256", model}});
    std::ofstream names(folder / "names.txt");
    for (int64_t i = 0; i < rows.size(0) + extra_names; ++i) names << name << i << "\n";
    return folder;
  }

  /// Two classes along the axes, one prompt each.
  static TextClassifier axes(int64_t width = 4) {
    return make_text_classifier(at::eye(width).slice(0, 0, 2), at::arange(2, at::kLong), {"x", "y"});
  }
  static eval::ClassPrompts texts() { return {"test", {{"an x"}, {"a y"}}}; }

  static torch::Tensor row(double x, double y, double z = 0) {
    const auto rest = std::sqrt(std::max(0.0, 1 - x * x - y * y - z * z));
    return at::tensor(std::vector<float>{static_cast<float>(x), static_cast<float>(y), static_cast<float>(z),
                                         static_cast<float>(rest)});
  }

  static std::vector<std::string> keys(const SupportSet& set) {
    std::vector<std::string> keys;
    for (const auto& each : set.rows) keys.push_back(each.key);
    return keys;
  }

  using Keys = std::vector<std::string>;
  fs::path folder_;
};

TEST_F(SupportRetrievalTest, TakesTheNearestOfAllFolders) {
  const auto rows = test::adapt_normalized(test::adapt_field(3, 400, 24));
  const auto first = write_index("a", rows.slice(0, 0, 150).to(at::kHalf));
  const auto second = write_index("b", rows.slice(0, 150, 400).to(at::kHalf));
  const EmbeddingIndex index({first, second});
  ASSERT_EQ(index.size(), 400);
  EXPECT_EQ(index.name(150), "b0");
  EXPECT_EQ(index.folder(399), second.string());

  // Three classes of several prompts; brute force in fp64 on what the index holds.
  const auto prompts = test::adapt_normalized(test::adapt_field(4, 6, 24));
  const auto owner = at::tensor(std::vector<int64_t>{0, 0, 0, 1, 2, 2}, at::kLong);
  const auto classifier = make_text_classifier(prompts.to(at::kFloat), owner, {"p", "q", "r"});
  const eval::ClassPrompts sentences{"test", {{"p1", "p2", "p3"}, {"q1"}, {"r1", "r2"}}};
  RetrievalOptions options;
  options.per_class = 5;
  options.candidates = 400;
  options.one_class = false;
  options.duplicate_cosine = 1.1;
  const auto set = retrieve_support(index, classifier, sentences, {}, options);
  const auto scores = rows.to(at::kHalf).to(at::kDouble).matmul(prompts.t());
  size_t at = 0;
  for (int64_t c = 0; c < 3; ++c) {
    const auto own = scores.index_select(1, owner.eq(c).nonzero().flatten());
    const auto order = std::get<0>(own.max(1)).argsort(0, /*descending=*/true);
    for (int64_t i = 0; i < 5; ++i, ++at) {
      EXPECT_EQ(set.rows[at].key, index.name(order[i].item<int64_t>()));
      EXPECT_NEAR(set.rows[at].score, std::get<0>(own.max(1))[order[i]].item<double>(), 1e-6);
      EXPECT_TRUE(set.features.keys[static_cast<int64_t>(at)].allclose(index.features(order.slice(0, i, i + 1))[0]));
    }
  }
  EXPECT_EQ(set.made_by.at("builder"), "from-shards");
}

TEST_F(SupportRetrievalTest, AnImageStandsForItsBestClassAndPrompt) {
  const auto index =
      EmbeddingIndex({write_index("a", at::stack({row(.6, .5), row(.5, .6), row(.1, .9), row(.9, .1)}))});
  RetrievalOptions options;
  options.per_class = 4;
  RetrievalReport report;
  const auto set = retrieve_support(index, axes(), texts(), {}, options, &report);
  EXPECT_EQ(keys(set), (Keys{"a3", "a0", "a2", "a1"}));
  EXPECT_EQ(report.other_class, 4);
  EXPECT_EQ(set.rows[1].prompt, "an x");
  options.one_class = false;
  options.duplicate_cosine = 1.1;
  EXPECT_EQ(retrieve_support(index, axes(), texts(), {}, options).size(), 8);
}

TEST_F(SupportRetrievalTest, AClassThatDidNotLookAtAnImageMayStillBeItsBest) {
  // a0 is nearest to y, but y's only candidate is a1.
  const auto index = EmbeddingIndex({write_index("a", at::stack({row(.5, .6), row(0, .9)}))});
  RetrievalOptions options;
  options.per_class = options.candidates = 1;
  RetrievalReport report;
  const auto set = retrieve_support(index, axes(), texts(), {}, options, &report);
  EXPECT_EQ(report.other_class, 1);
  EXPECT_EQ(keys(set), (Keys{"a0", "a1"}));
  EXPECT_EQ(set.rows[0].note, "fallback");  // y hasn't taken it
  EXPECT_EQ(set.rows[1].note, "");
}

TEST_F(SupportRetrievalTest, EveryImageTakenWithoutFallbackIsNearestToItsClass) {
  const auto rows = test::adapt_normalized(test::adapt_field(5, 300, 8)).to(at::kFloat);
  const auto prompts = test::adapt_normalized(test::adapt_field(6, 7, 8)).to(at::kFloat);
  const auto owner = at::tensor(std::vector<int64_t>{0, 0, 1, 2, 2, 2, 3}, at::kLong);
  const auto classifier = make_text_classifier(prompts, owner, {"p", "q", "r", "s"});
  const eval::ClassPrompts sentences{"test", {{"p1", "p2"}, {"q1"}, {"r1", "r2", "r3"}, {"s1"}}};
  RetrievalOptions options;
  options.per_class = 6;
  options.candidates = 8;
  const auto set = retrieve_support(EmbeddingIndex({write_index("a", rows)}), classifier, sentences, {}, options);
  const auto best = owner.index_select(0, set.features.keys.matmul(prompts.t()).argmax(1));
  size_t plain = 0;
  for (int64_t i = 0; i < set.size(); ++i) {
    if (!set.rows[static_cast<size_t>(i)].note.empty()) continue;
    ++plain;
    EXPECT_EQ(best[i].item<int64_t>(), set.features.labels[i].item<int64_t>());
  }
  EXPECT_GE(plain, 12U);
}

TEST_F(SupportRetrievalTest, OfNearDuplicatesTheBetterOneStays) {
  const auto index =
      EmbeddingIndex({write_index("a", at::stack({row(.8, 0), row(.82, 0), row(.8, 0, .6), row(.82, 0), row(0, .9)}))});
  RetrievalOptions options;
  options.per_class = 3;
  RetrievalReport report;
  const auto set = retrieve_support(index, axes(), texts(), {}, options, &report);
  EXPECT_EQ(keys(set), (Keys{"a1", "a2", "a4"}));  // a3 is a1's copy, a0 nearly
  EXPECT_GE(report.duplicates, 2);
}

TEST_F(SupportRetrievalTest, EvaluationImagesAreLeftOutEvenIfTooFewRemain) {
  const auto index = EmbeddingIndex({write_index("a", at::stack({row(.9, 0), row(.5, 0, .5), row(0, .9)}))});
  RetrievalOptions options;
  options.per_class = 2;
  RetrievalReport report;
  const auto set = retrieve_support(index, axes(), texts(), at::stack({row(.89, 0)}), options, &report);
  EXPECT_EQ(keys(set).front(), "a1");
  EXPECT_GE(report.excluded, 1);
  options.one_class = false;
  options.min_per_class = 2;
  const auto all = at::stack({row(.89, 0), row(.5, 0, .5), row(0, .9)});
  EXPECT_EQ(test::message_of<DataError>([&] { retrieve_support(index, axes(), texts(), all, options); }),
            "[from-shards] 2 classes have fewer than 2 images (min_per_class): x (0), y (0); more candidates, a larger "
            "index or images for several classes may help");
}

TEST_F(SupportRetrievalTest, TheFallbackFillsAClassAndSaysSo) {
  const auto index = EmbeddingIndex({write_index("a", at::stack({row(.6, .5), row(.9, .1), row(.91, .1)}))});
  RetrievalOptions options;
  options.per_class = 2;
  RetrievalReport report;
  const auto set = retrieve_support(index, axes(), texts(), {}, options, &report);
  // All three are best for x; y takes the nearest to it of those that x hasn't taken.
  EXPECT_EQ(keys(set), (Keys{"a2", "a0", "a1"}));
  EXPECT_EQ(set.rows[2].note, "fallback");
  EXPECT_EQ(report.fallbacks, 1);
  EXPECT_TRUE(set.rows[0].note.empty());
}

TEST_F(SupportRetrievalTest, OfEqualScoresTheLowerRowComesFirstAndWhatIsNoNumberNever) {
  auto rows = at::stack({row(.5, 0, .1), row(.5, 0, -.8), row(.5, 0, .8), row(0, .9)});
  rows[1][2] = std::numeric_limits<float>::quiet_NaN();
  const auto index = EmbeddingIndex({write_index("a", rows)});
  RetrievalOptions options;
  options.per_class = 3;
  EXPECT_EQ(keys(retrieve_support(index, axes(), texts(), {}, options)), (Keys{"a0", "a2", "a3"}));
}

TEST_F(SupportRetrievalTest, SaysWhatIsWrongWithAnIndex) {
  const auto rows = at::eye(4);
  const auto good = write_index("good", rows);
  EXPECT_EQ(
      test::message_of<DataError>([&] {
        EmbeddingIndex({good, write_index("other", rows, "bb")});
      }),
      "[embedding_index] " + good.string() + " is of the model aa, but " + (folder_ / "other").string() + " of bb");
  EXPECT_NE(test::message_of<DataError>([&] {
              EmbeddingIndex({write_index("raw", rows, "aa", "no")});
            }).find("aren't normalised"),
            std::string::npos);
  EXPECT_NE(test::message_of<DataError>([&] {
              EmbeddingIndex({write_index("names", rows, "aa", "yes", 2)});
            }).find("has 6 lines"),
            std::string::npos);
  EXPECT_EQ(test::message_of<ConfigError>([] { EmbeddingIndex({}); }), "[embedding_index] there must be a folder");
  RetrievalOptions options;
  options.min_per_class = 17;
  EXPECT_EQ(
      test::message_of<ConfigError>([&] { retrieve_support(EmbeddingIndex({good}), axes(), texts(), {}, options); }),
      "[from-shards] min_per_class must be in [1, 16], per_class, but is 17");
  EXPECT_EQ(test::message_of<DataError>(
                [&] { retrieve_support(EmbeddingIndex({good}), axes(5), texts(), {}, RetrievalOptions()); }),
            "[from-shards] the index has 4 features, but the prompts 5");
}

}  // namespace
}  // namespace contrastive::adapt
