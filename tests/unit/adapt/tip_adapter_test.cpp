#include "contrastive/adapt/tip_adapter.h"

#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"

#include "tests/support/adapt_fixture.h"
#include "tests/support/errors.h"

namespace contrastive::adapt {
namespace {

TipAdapter fitted(const test::AdaptFixture& f, at::ScalarType dtype = at::kDouble) {
  TextClassifier classifier;
  classifier.weights = f.weights.to(dtype);
  TipAdapter adapter;
  adapter.fit(SupportFeatures{f.keys, f.labels, f.weights.size(0), {}}.to(dtype), classifier);
  return adapter;
}

TEST(TipAdapterTest, HasTheReferenceLogits) {
  const auto f1 = test::adapt_fixture_f1();
  EXPECT_NEAR(fitted(f1).logits(f1.queries, {5.5, 1.17}).sum().item<double>(), 385.494365696, 1e-9);
  const auto f2 = test::adapt_fixture_f2();
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    const auto logits = fitted(f2, dtype).logits(f2.queries.to(dtype), {5.5, 50});
    EXPECT_NEAR(logits.to(at::kDouble).sum().item<double>(), 1858.814477390, dtype == at::kDouble ? 1e-8 : 2e-4 * 72);
    EXPECT_TRUE(
        logits.argmax(1).equal(at::tensor(std::vector<int64_t>{0, 0, 4, 5, 4, 1, 0, 0, 0, 3, 4, 0}, at::kLong)));
  }
}

TEST(TipAdapterTest, WithoutSharpnessTheCacheCountsTheClasses) {
  const auto f = test::adapt_fixture_f2();
  const auto adapter = fitted(f);
  const auto cache = adapter.logits(f.queries, {0, 1}) - adapter.logits(f.queries, {0, 0});
  EXPECT_LT((cache - 4).abs().max().item<double>(), 1e-12);
}

TEST(TipAdapterTest, TheSweepHasTheScoresOfEveryBeta) {
  const auto f = test::adapt_fixture_f2();
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    const auto adapter = fitted(f, dtype);
    const auto betas = adapter.parameters()[0].grid;
    EXPECT_NEAR(betas[199], 0.1 + 199 * 6.9 / 200, 1e-12);
    int64_t visits = 0;
    adapter.visit_terms({f.queries.to(dtype), {}}, [&](int64_t, int64_t point, const ScoreTerms& terms) {
      const auto a = f.queries.matmul(f.keys.t());
      const auto expected = ((a - 1) * betas[static_cast<size_t>(point)]).exp().reshape({12, 6, 4}).sum(2);
      EXPECT_LT(((terms.inner.to(at::kDouble) - expected) / expected).abs().max().item<double>(),
                dtype == at::kDouble ? 1e-12 : 1e-5);
      ++visits;
    });
    EXPECT_EQ(visits, 200);
  }
}

TEST(TipAdapterTest, RefusesOptionsOutOfRange) {
  EXPECT_EQ(test::message_of<ConfigError>([] { TipAdapter adapter({.max_beta = 0.1}); }),
            "[tip-adapter] max_beta must be above 0.1, but is 0.1");
  EXPECT_EQ(test::message_of<ConfigError>([] { TipAdapter adapter({.alpha = -1}); }),
            "[tip-adapter] alpha must be at least 0, but is -1");
}

}  // namespace
}  // namespace contrastive::adapt
