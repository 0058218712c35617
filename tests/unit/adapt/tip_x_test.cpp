#include "contrastive/adapt/tip_x.h"

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "contrastive/adapt/tip_adapter.h"
#include "contrastive/core/error.h"

#include "tests/support/adapt_fixture.h"
#include "tests/support/errors.h"

namespace contrastive::adapt {
namespace {

using test::AdaptFixture;

SupportFeatures support_of(const AdaptFixture& f, at::ScalarType dtype = at::kDouble) {
  return SupportFeatures{f.keys, f.labels, f.weights.size(0), {}}.to(dtype);
}

TextClassifier classifier_of(const AdaptFixture& f, at::ScalarType dtype = at::kDouble) {
  TextClassifier classifier;
  classifier.weights = f.weights.to(dtype);
  return classifier;
}

/// M_ij = sum_c p_ic (log p_ic - log q_jc), in plain terms. [N, M]
torch::Tensor naive_divergences(const torch::Tensor& queries, const torch::Tensor& keys, const torch::Tensor& weights,
                                double tau) {
  const auto log_p = (queries.matmul(weights.t()) / tau).log_softmax(1);
  const auto log_q = (keys.matmul(weights.t()) / tau).log_softmax(1);
  auto result = at::empty({queries.size(0), keys.size(0)}, at::kDouble);
  for (int64_t i = 0; i < queries.size(0); ++i) {
    for (int64_t j = 0; j < keys.size(0); ++j) result[i][j] = (log_p[i].exp() * (log_p[i] - log_q[j])).sum();
  }
  return result;
}

/// The published formula with all its matrices.
torch::Tensor naive_logits(const AdaptFixture& f, double alpha, double beta, double gamma, double tau) {
  const auto a = f.queries.matmul(f.keys.t());
  const auto m = naive_divergences(f.queries, f.keys, f.weights, tau);
  const auto psi = (m - m.min()) / (m.max() - m.min()) * (a.max() - a.min()) + a.min();
  const auto l = at::one_hot(f.labels, f.weights.size(0)).to(at::kDouble);
  return 100 * f.queries.matmul(f.weights.t()) + alpha * (-beta * (1 - a)).exp().matmul(l) + gamma * (-psi).matmul(l);
}

TipX fitted(const AdaptFixture& f, const TipXOptions& options = {}, at::ScalarType dtype = at::kDouble) {
  TipX adapter(options);
  adapter.fit(support_of(f, dtype), classifier_of(f, dtype));
  adapter.observe({f.queries.to(dtype), {}});
  return adapter;
}

torch::Tensor row(std::vector<double> values) {
  return at::tensor(values, at::kDouble);
}

double largest_difference(const torch::Tensor& a, const torch::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

std::vector<int64_t> predictions(const torch::Tensor& logits) {
  const auto best = logits.argmax(1);
  return {best.const_data_ptr<int64_t>(), best.const_data_ptr<int64_t>() + best.numel()};
}

torch::Tensor random_rows(int64_t n, int64_t d) {
  return test::adapt_normalized(test::adapt_field(77, n, d));
}

TEST(TipXTest, FixturesHaveTheirPublishedNumbers) {
  EXPECT_LT(largest_difference(test::adapt_field(1, 1, 4),
                               row({.5326035147, -.7479379592, .4018624837, .2657525215}).unsqueeze(0)),
            1e-10);
  EXPECT_LT(largest_difference(test::adapt_fixture_f2().weights[0].slice(0, 0, 3),
                               row({-.123268197, .126589697, -.162030429})),
            1e-9);
}

TEST(TipXTest, HasTheReferenceLogitsOfTheFirstFixture) {
  const auto f = test::adapt_fixture_f1();
  for (const auto aggregate : {Aggregate::sum, Aggregate::mean}) {
    const auto adapter = fitted(f, {.aggregate = aggregate});
    const auto logits = adapter.logits(f.queries, {1.17, 5.5, 2});
    EXPECT_NEAR(logits.sum().item<double>(), 394.409772739, 1e-9);
    EXPECT_LT(
        largest_difference(logits[0], row({25.766175786, -8.082992233, -20.437345738, -29.399399182, 14.947340022})),
        1e-9);
    EXPECT_LT(largest_difference(logits, naive_logits(f, 1.17, 5.5, 2, 0.5)), 1e-11);
  }
  const auto m = fitted(f).divergences(f.queries);
  EXPECT_NEAR(m.min().item<double>(), .004102602463, 1e-12);
  EXPECT_NEAR(m.max().item<double>(), .575940906474, 1e-12);
  EXPECT_NEAR(m.mean().item<double>(), .158032883559, 1e-12);
  const auto sharp = fitted(f, {.tau = 0.01});
  EXPECT_NEAR(sharp.logits(f.queries, {1.17, 5.5, 2}).sum().item<double>(), 380.126890023, 1e-9);
  EXPECT_NEAR(sharp.divergences(f.queries).max().item<double>(), 85.654301182, 1e-9);
}

TEST(TipXTest, HasTheReferenceLogitsOfTheSecondFixture) {
  const auto f = test::adapt_fixture_f2();
  const auto logits = fitted(f).logits(f.queries, {50, 5.5, 30});
  EXPECT_NEAR(logits.sum().item<double>(), 1200.931787405, 1e-8);
  EXPECT_NEAR(logits.norm().item<double>(), 332.308438061, 1e-9);
  EXPECT_LT(largest_difference(
                logits[7], row({29.536500609, 23.638688957, 39.743183382, 4.789829984, 34.987724894, 42.404836188})),
            1e-9);
  EXPECT_EQ(predictions(logits), (std::vector<int64_t>{0, 0, 2, 5, 4, 1, 0, 5, 0, 3, 4, 0}));
  const auto m = fitted(f).divergences(f.queries);
  EXPECT_NEAR(m.min().item<double>(), .004742407218, 1e-12);
  EXPECT_NEAR(m.max().item<double>(), .325096002941, 1e-12);
  EXPECT_NEAR(m[7][5].item<double>(), .093329556062, 1e-12);
}

TEST(TipXTest, SinglePrecisionStaysNearTheReference) {
  for (const auto& f : {test::adapt_fixture_f1(), test::adapt_fixture_f2()}) {
    const auto logits = fitted(f, {}, at::kFloat).logits(f.queries.to(at::kFloat), {50, 5.5, 30});
    EXPECT_LT(largest_difference(logits, naive_logits(f, 50, 5.5, 30, 0.5)), 2e-4);
    EXPECT_EQ(predictions(logits), predictions(naive_logits(f, 50, 5.5, 30, 0.5)));
  }
}

TEST(TipXTest, SmallDivergencesOfManyClassesSurviveSinglePrecision) {
  AdaptFixture f;
  const auto common = random_rows(1, 64);
  f.weights = test::adapt_normalized(0.5 * test::adapt_field(3, 1000, 64) + 5 * common);
  f.labels = at::arange(1000, at::kLong);
  f.keys = test::adapt_normalized(test::adapt_field(4, 1000, 64) + 8 * common);
  f.queries = test::adapt_normalized(test::adapt_field(5, 9, 64) + 8 * common);
  const auto expected = naive_divergences(f.queries, f.keys.slice(0, 0, 50), f.weights, 0.5);
  ASSERT_LT(expected.mean().item<double>(), 5e-3);
  const auto found = fitted(f, {}, at::kFloat).divergences(f.queries.to(at::kFloat)).slice(1, 0, 50);
  EXPECT_LT(largest_difference(found, expected), 0.01 * expected.min().item<double>());
}

TEST(TipXTest, DivergencesAreThoseOfTheDefinitionAndNoneIsNegative) {
  const auto f = test::adapt_fixture_f2();
  for (const double tau : {0.5, 0.05}) {
    const auto m = fitted(f, {.tau = tau}).divergences(f.queries);
    EXPECT_LT(largest_difference(m, naive_divergences(f.queries, f.keys, f.weights, tau)), 1e-12);
    EXPECT_GE(m.min().item<double>(), 0);
    EXPECT_LT(fitted(f, {.tau = tau}).divergences(f.keys).diagonal().max().item<double>(), 1e-12);
  }
}

TEST(TipXTest, ZeroFactorsLeaveTipAdapterAndTheZeroShotClassifier) {
  const auto f = test::adapt_fixture_f2();
  const auto adapter = fitted(f);
  const auto zero_shot = 100 * f.queries.matmul(f.weights.t());
  EXPECT_LT(largest_difference(adapter.logits(f.queries, {0, 5.5, 0}), zero_shot), 1e-12);
  EXPECT_NEAR(zero_shot.sum().item<double>(), 1173.875356571, 1e-8);
  TipAdapter tip;
  tip.fit(support_of(f), classifier_of(f));
  EXPECT_LT(largest_difference(adapter.logits(f.queries, {50, 5.5, 0}), tip.logits(f.queries, {5.5, 50})), 1e-12);
}

TEST(TipXTest, OrderOfRowsAndDirectionsOfAxesDontMatter) {
  const auto f = test::adapt_fixture_f2();
  const auto expected = fitted(f).logits(f.queries, {50, 5.5, 30});

  auto shuffled = f;
  const auto within = at::tensor(std::vector<int64_t>{3, 0, 2, 1}, at::kLong);
  shuffled.keys = f.keys.reshape({6, 4, -1}).index_select(1, within).flatten(0, 1);
  EXPECT_LT(largest_difference(fitted(shuffled).logits(f.queries, {50, 5.5, 30}), expected), 1e-11);

  auto rotated = f;
  const auto q = std::get<0>(at::linalg_qr(test::adapt_field(9, 24, 24)));
  rotated.weights = f.weights.matmul(q);
  rotated.keys = f.keys.matmul(q);
  rotated.queries = f.queries.matmul(q);
  EXPECT_LT(largest_difference(fitted(rotated).logits(rotated.queries, {50, 5.5, 30}), expected), 1e-10);
}

TEST(TipXTest, ColumnsFollowTheirClasses) {
  const auto f = test::adapt_fixture_f2();
  const auto order = at::tensor(std::vector<int64_t>{4, 2, 0, 5, 1, 3}, at::kLong);  // new class i is old order[i]
  auto permuted = f;
  permuted.weights = f.weights.index_select(0, order);
  permuted.keys = f.keys.reshape({6, 4, -1}).index_select(0, order).flatten(0, 1);
  EXPECT_LT(largest_difference(fitted(permuted).logits(f.queries, {50, 5.5, 30}),
                               fitted(f).logits(f.queries, {50, 5.5, 30}).index_select(1, order)),
            1e-11);
}

TEST(TipXTest, ADoubledSupportSetDoublesBothBranches) {
  const auto f = test::adapt_fixture_f2();
  auto doubled = f;
  doubled.keys = f.keys.repeat_interleave(2, 0);
  doubled.labels = f.labels.repeat_interleave(2);
  const auto base = 100 * f.queries.matmul(f.weights.t());
  for (const auto aggregate : {Aggregate::sum, Aggregate::mean}) {
    const auto once = fitted(f, {.aggregate = aggregate}).logits(f.queries, {50, 5.5, 30}) - base;
    const auto twice = fitted(doubled, {.aggregate = aggregate}).logits(f.queries, {50, 5.5, 30}) - base;
    EXPECT_LT(largest_difference(twice, 2 * once), 1e-10);
  }
}

TEST(TipXTest, ClassMeansDontFavourClassesWithMoreRows) {
  auto f = test::adapt_fixture_f1();
  const auto kept = at::tensor(std::vector<int64_t>{0, 3, 4, 6, 7, 8, 9, 12, 13, 14}, at::kLong);
  f.keys = f.keys.index_select(0, kept);
  f.labels = f.labels.index_select(0, kept);
  const auto divergence_branch = [&f](Aggregate aggregate) {
    const auto adapter = fitted(f, {.aggregate = aggregate});
    return predictions(adapter.logits(f.queries, {0, 1, 1}) - adapter.logits(f.queries, {0, 1, 0}));
  };
  EXPECT_EQ(divergence_branch(Aggregate::sum), (std::vector<int64_t>{2, 2, 2, 2, 2, 2, 1}));
  EXPECT_EQ(divergence_branch(Aggregate::mean), (std::vector<int64_t>{0, 1, 2, 3, 0, 2, 1}));
}

TEST(TipXTest, AnImageScoresTheSameInAnyCompany) {
  auto f = test::adapt_fixture_f2();
  f.queries = random_rows(201, 24);  // no multiple of a tile
  TipX adapter;
  adapter.fit(support_of(f), classifier_of(f));
  const auto together = adapter.logits(f.queries, {50, 5.5, 30});
  ASSERT_EQ(together.size(0), 201);
  for (const int64_t i : {int64_t{0}, int64_t{63}, int64_t{64}, int64_t{200}}) {
    EXPECT_LT(
        largest_difference(adapter.logits(f.queries.slice(0, i, i + 1), {50, 5.5, 30}), together.slice(0, i, i + 1)),
        1e-11);
  }
  EXPECT_EQ(adapter.logits(f.queries.slice(0, 0, 0), {50, 5.5, 30}).size(0), 0);
}

TEST(TipXTest, RangesAreThoseOfAllImagesAndOfEveryTile) {
  auto f = test::adapt_fixture_f2();
  f.queries = at::cat({random_rows(1200, 24), f.queries});  // several tiles, the extremes in different ones
  const auto adapter = fitted(f);
  EXPECT_LT(largest_difference(adapter.logits(f.queries, {50, 5.5, 30}), naive_logits(f, 50, 5.5, 30, 0.5)), 1e-9);
}

TEST(TipXTest, OneImageCanBeObservedAndAZeroRangeGivesNoBranch) {
  auto f = test::adapt_fixture_f2();
  const auto one = f.queries.slice(0, 0, 1);
  TipX adapter;
  adapter.fit(support_of(f), classifier_of(f));
  adapter.observe({one, {}});
  EXPECT_TRUE(adapter.logits(one, {50, 5.5, 30}).isfinite().all().item<bool>());

  f.keys = f.keys.slice(0, 0, 1).repeat({f.keys.size(0), 1});  // all divergences are equal
  adapter.fit(support_of(f), classifier_of(f));
  adapter.observe({one, {}});
  EXPECT_LT(largest_difference(adapter.logits(one, {0, 1, 30}), adapter.logits(one, {0, 1, 0})), 1e-12);
}

TEST(TipXTest, WithoutPsiTheBranchIsTheDivergenceItself) {
  const auto f = test::adapt_fixture_f2();
  const auto adapter = fitted(f, {.psi = Psi::none});
  const auto m = naive_divergences(f.queries, f.keys, f.weights, 0.5);
  const auto sums = m.matmul(at::one_hot(f.labels, 6).to(at::kDouble));
  const auto base = 100 * f.queries.matmul(f.weights.t());
  EXPECT_LT(largest_difference(adapter.logits(f.queries, {0, 1, 3}), base - 3 * sums), 1e-11);
}

TEST(TipXTest, TheSweepVisitsEveryBetaWithTheScoresOfThatBeta) {
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    const auto f = test::adapt_fixture_f2();
    const auto adapter = fitted(f, {}, dtype);
    const auto betas = adapter.parameters()[1].grid;
    ASSERT_EQ(betas.size(), 200U);
    EXPECT_NEAR(betas.back(), 49.755, 1e-12);
    int64_t next = 0;
    adapter.visit_terms({f.queries.to(dtype), {}}, [&](int64_t first, int64_t point, const ScoreTerms& terms) {
      EXPECT_EQ(first, 0);
      EXPECT_EQ(point, next++);
      const auto beta = betas[static_cast<size_t>(point)];
      const auto expected = naive_logits(f, 50, beta, 30, 0.5);
      EXPECT_LT(largest_difference(terms.base + 50 * terms.outer + 30 * terms.inner, expected),
                dtype == at::kDouble ? 1e-10 : 2e-4)
          << beta;
    });
    EXPECT_EQ(next, 200);
  }
}

TEST(TipXTest, RestoresWhatItSaved) {
  const auto f = test::adapt_fixture_f2();
  const auto adapter = fitted(f);
  TipX other;
  other.restore(adapter.state());
  EXPECT_TRUE(other.logits(f.queries, {50, 5.5, 30}).equal(adapter.logits(f.queries, {50, 5.5, 30})));
  auto state = adapter.state();
  std::erase_if(state, [](const auto& entry) { return entry.first == "ranges"; });
  EXPECT_EQ(test::message_of<CheckpointError>([&] { other.restore(state); }),
            "[tip-x] the saved state has no tensor ranges");
  state = adapter.state();
  for (auto& [name, tensor] : state) {
    if (name == "offsets") tensor = tensor * 2;
  }
  EXPECT_EQ(test::message_of<CheckpointError>([&] { other.restore(state); }),
            "[tip-x] the saved state's offsets must rise from 0 to 24");
  for (auto& [name, tensor] : state) {
    if (name == "keys") tensor = tensor.slice(1, 0, 7);
  }
  EXPECT_EQ(test::message_of<CheckpointError>([&] { other.restore(state); }),
            "[tip-x] the saved state's keys must be Double [24, 24], but is Double [24, 7]");
}

TEST(TipXTest, SaysWhatIsWrong) {
  const auto f = test::adapt_fixture_f2();
  EXPECT_EQ(test::message_of<ConfigError>([] { TipX adapter({.tau = 0}); }), "[tip-x] tau must be above 0, but is 0");
  TipX adapter;
  auto nan = test::adapt_fixture_f2();
  nan.keys[5][3] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(test::message_of<DataError>([&] { adapter.fit(support_of(nan), classifier_of(nan)); }),
            "[support_features] keys must be finite, but row 5 of 24 isn't");
  auto empty = support_of(f).rows(at::tensor(std::vector<int64_t>{0, 1, 4, 8, 12, 16}, at::kLong));
  EXPECT_EQ(test::message_of<DataError>([&] { adapter.fit(empty, classifier_of(f)); }),
            "[support_features] every class needs a row, but 1 of 6 have none: classes 5");
  const SupportFeatures one_class{f.keys.slice(0, 0, 4), f.labels.slice(0, 0, 4), 1, {}};
  EXPECT_EQ(test::message_of<DataError>([&] { adapter.fit(one_class, classifier_of(f)); }),
            "[support_features] at least 2 classes are needed, but there is 1");
  adapter.fit(support_of(f), classifier_of(f));
  auto queries = f.queries.clone();
  queries[2][0] = std::numeric_limits<double>::infinity();
  EXPECT_EQ(test::message_of<DataError>([&] {
              adapter.logits(queries, {1, 1, 1});
            }),
            "[tip-x] features must be finite, but row 2 of 12 isn't");
}

}  // namespace
}  // namespace contrastive::adapt
