#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "contrastive/adapt/adaptation.h"
#include "contrastive/adapt/grid_search.h"
#include "contrastive/adapt/retrieval.h"
#include "contrastive/adapt/tip_x.h"
#include "contrastive/core/safetensors.h"

#include "tests/support/adapt_fixture.h"
#include "tests/support/ranks.h"

namespace contrastive::adapt {
namespace {

/// A rank's share of the images; the last rank of three has none.
LabelledQueries share_of(const test::AdaptFixture& f, const distributed::ProcessGroup& group) {
  const auto parts = std::min<int64_t>(group.size(), 2);
  const auto size = f.queries.size(0);
  const auto begin = std::min(size, size * group.rank() / parts);
  const auto end = std::min(size, size * (group.rank() + 1) / parts);
  return {{f.queries.slice(0, begin, end), {}}, f.targets.slice(0, begin, end)};
}

TEST(AdaptRanksTest, SharesOfTheImagesGiveTheResultsOfAll) {
  for (const int64_t ranks : {2, 3}) {
    test::run_on_ranks(static_cast<int>(ranks), [](const distributed::ProcessGroup& group) {
      const auto f = test::adapt_fixture_f2();
      const auto classifier = make_text_classifier(f.weights, at::arange(6, at::kLong), {"a", "b", "c", "d", "e", "f"});
      const SupportFeatures support{f.keys, f.labels, 6, {}};
      const auto own = share_of(f, group);

      TipX alone;
      alone.fit(support, classifier);
      alone.observe({f.queries, {}});
      TipX together;
      together.fit(support, classifier);
      together.observe(own.queries, group);
      const std::vector<double> values{50, 5.5, 30};
      EXPECT_TRUE(together.logits(f.queries, values).equal(alone.logits(f.queries, values)));

      const auto expected = search_grid(alone, {f.queries, {}}, f.targets);
      const auto found = search_grid(together, own.queries, own.labels, group);
      EXPECT_TRUE(found.correct.equal(expected.correct));
      EXPECT_EQ(found.num_samples, 12);

      for (const auto protocol : {Protocol::fixed, Protocol::support_cv, Protocol::test_oracle}) {
        AdaptationRequest request;
        request.protocol = protocol;
        request.transductive = true;
        const auto all = adapt_and_test(request, support, classifier, {{f.queries, {}}, f.targets});
        const auto shared = adapt_and_test(request, support, classifier, own, nullptr, group);
        EXPECT_EQ(shared.values, all.values);
        EXPECT_EQ(shared.top1_accuracy, all.top1_accuracy);
        EXPECT_EQ(shared.mean_per_class_recall, all.mean_per_class_recall);
        EXPECT_EQ(shared.num_samples, 12);
      }
    });
  }
}

TEST(AdaptRanksTest, SharesOfAnIndexGiveTheImagesOfAll) {
  namespace fs = std::filesystem;
  const auto folder = fs::path(::testing::TempDir()) / ("adapt_ranks_" + std::to_string(::getpid()));
  const auto rows = test::adapt_normalized(test::adapt_field(7, 90, 12)).to(at::kHalf);
  std::vector<fs::path> parts;
  for (const auto& [begin, end] : {std::pair{0, 20}, {20, 21}, {21, 90}}) {
    const auto part = folder / std::to_string(begin);
    fs::create_directories(part);
    write_safetensors(part / "features.safetensors", {{"features", rows.slice(0, begin, end).contiguous()}},
                      {{"kind", "images"}, {"normalized", "yes"}, {"model_sha256", "aa"}});
    std::ofstream names(part / "names.txt");
    for (auto i = begin; i < end; ++i) names << "image" << i << "\n";
    parts.push_back(part);
  }
  const auto prompts = test::adapt_normalized(test::adapt_field(8, 5, 12)).to(at::kFloat);
  const auto owner = at::tensor({0, 0, 1, 2, 2}, at::kLong);
  const auto classifier = make_text_classifier(prompts, owner, {"p", "q", "r"});
  const eval::ClassPrompts sentences{"test", {{"p1", "p2"}, {"q1"}, {"r1", "r2"}}};
  const auto excluded = rows.slice(0, 30, 50).to(at::kFloat);
  for (const int64_t candidates : {12, 60}) {  // fewer and more than the rows of a rank
    RetrievalOptions options;
    options.per_class = 8;
    options.candidates = candidates;
    RetrievalReport expected_report;
    const auto expected =
        retrieve_support(EmbeddingIndex(parts), classifier, sentences, excluded, options, &expected_report);
    EXPECT_GT(expected_report.excluded, 0);
    for (const int ranks : {2, 3}) {
      test::run_on_ranks(ranks, [&](const distributed::ProcessGroup& group) {
        RetrievalReport report;
        const auto set =
            retrieve_support(EmbeddingIndex(parts), classifier, sentences, excluded, options, &report, group);
        ASSERT_EQ(set.size(), expected.size());
        for (size_t i = 0; i < set.rows.size(); ++i) EXPECT_EQ(set.rows[i].key, expected.rows[i].key);
        EXPECT_TRUE(set.features.keys.equal(expected.features.keys));
        EXPECT_EQ(report.excluded, expected_report.excluded);
        EXPECT_EQ(report.other_class, expected_report.other_class);
      });
    }
  }
  fs::remove_all(folder);
}

}  // namespace
}  // namespace contrastive::adapt
