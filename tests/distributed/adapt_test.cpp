#include <algorithm>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "contrastive/adapt/adaptation.h"
#include "contrastive/adapt/grid_search.h"
#include "contrastive/adapt/tip_x.h"

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

}  // namespace
}  // namespace contrastive::adapt
