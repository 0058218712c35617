#include "contrastive/adapt/grid_search.h"

#include <limits>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "contrastive/adapt/tip_adapter.h"
#include "contrastive/adapt/tip_x.h"
#include "contrastive/core/error.h"

#include "tests/support/adapt_fixture.h"
#include "tests/support/errors.h"

namespace contrastive::adapt {
namespace {

/// Terms that are given, whatever the features.
class GivenTerms : public Adapter {
 public:
  GivenTerms(std::vector<Parameter> parameters, std::vector<ScoreTerms> points)
      : parameters_(std::move(parameters)), points_(std::move(points)) {
    TextClassifier classifier;
    classifier.weights = at::ones({points_.front().base.size(1), 1}, points_.front().base.options());
    fit({}, classifier);
  }
  std::string name() const override { return "given"; }
  std::vector<Parameter> parameters() const override { return parameters_; }
  bool needs_support() const override { return false; }

  torch::Tensor features() const { return at::ones({points_.front().base.size(0), 1}, points_.front().base.options()); }

 protected:
  void do_fit(const SupportFeatures&, const TextClassifier&) override {}
  ScoreTerms terms(const QueryFeatures&, const ParameterValues&) const override { return points_.front(); }
  void sweep_terms(const QueryFeatures&,
                   const std::function<void(int64_t shape_point, const ScoreTerms&)>& visit) const override {
    for (size_t i = 0; i < points_.size(); ++i) visit(static_cast<int64_t>(i), points_[i]);
  }
  int64_t tile_rows() const override { return 1 << 20; }

 private:
  std::vector<Parameter> parameters_;
  std::vector<ScoreTerms> points_;
};

/// Scores every image at one point by tensors, and counts those whose first highest class is right.
int64_t brute_force(const ScoreTerms& terms, const torch::Tensor& labels, double outer, double inner) {
  auto logits = terms.base;
  if (terms.outer.defined()) logits = logits + terms.outer * outer;
  if (terms.inner.defined()) logits = logits + terms.inner * inner;
  const auto scores = logits.to(at::kDouble)
                          .nan_to_num(-std::numeric_limits<double>::infinity(), std::numeric_limits<double>::infinity(),
                                      -std::numeric_limits<double>::infinity());
  int64_t correct = 0;
  for (int64_t i = 0; i < logits.size(0); ++i) {
    int64_t best = 0;
    for (int64_t c = 1; c < logits.size(1); ++c) {
      if (scores[i][c].item<double>() > scores[i][best].item<double>()) best = c;
    }
    const auto label = labels[i].item<int64_t>();
    correct += best == label && !std::isnan(logits[i][label].item<double>());
  }
  return correct;
}

torch::Tensor labels_below(int64_t count, int64_t classes) {
  return (test::adapt_field(123, 1, count).flatten().abs() * classes).floor().to(at::kLong).clamp_max(classes - 1);
}

TEST(GridSearchTest, EqualsBruteForceAtEveryPoint) {
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    for (const int64_t classes : {2, 5, 37}) {
      ScoreTerms terms;
      terms.base = (test::adapt_field(1, 40, classes) * 3).to(dtype);
      terms.outer = test::adapt_field(2, 40, classes).to(dtype);
      terms.inner = test::adapt_field(3, 40, classes).to(dtype);
      // Ties: rounded numbers meet exactly, the last class repeats the first, some images have no slope.
      terms.base.slice(0, 0, 20) = terms.base.slice(0, 0, 20).round();
      terms.outer.slice(0, 0, 20) = (terms.outer.slice(0, 0, 20) * 2).round();
      terms.inner.slice(0, 0, 20) = (terms.inner.slice(0, 0, 20) * 2).round();
      for (auto* term : {&terms.base, &terms.outer, &terms.inner}) {
        term->slice(0, 0, 5).select(1, classes - 1).copy_(term->slice(0, 0, 5).select(1, 0));
      }
      terms.inner[20].zero_();
      terms.base[21] *= 1e20;
      terms.base[22][0] = std::numeric_limits<double>::quiet_NaN();
      terms.base[23][classes - 1] = std::numeric_limits<double>::infinity();
      const auto labels = labels_below(40, classes);
      const std::vector<double> outer_grid{0, 0.5, 1, 2.25, 40};
      const std::vector<double> inner_grid{-2, -1, 0, 0.25, 0.5, 1, 3, 1000};
      const GivenTerms adapter({{"a", 0, outer_grid, ParameterRole::outer}, {"g", 0, inner_grid, ParameterRole::inner}},
                               {terms});
      const auto found = search_grid(adapter, {adapter.features(), {}}, labels);
      EXPECT_EQ(found.num_samples, 40);
      for (size_t o = 0; o < outer_grid.size(); ++o) {
        for (size_t i = 0; i < inner_grid.size(); ++i) {
          EXPECT_EQ(found.correct[static_cast<int64_t>(o)][static_cast<int64_t>(i)].item<int64_t>(),
                    brute_force(terms, labels, outer_grid[o], inner_grid[i]))
              << classes << " classes, " << outer_grid[o] << ", " << inner_grid[i];
        }
      }
    }
  }
}

TEST(GridSearchTest, CountsHaveADimensionAParameterInTheirOrder) {
  std::vector<ScoreTerms> points;
  for (int64_t i = 0; i < 6; ++i) {
    points.push_back({test::adapt_field(10 + static_cast<uint64_t>(i), 30, 4), test::adapt_field(20, 30, 4),
                      test::adapt_field(30, 30, 4)});
  }
  const std::vector<double> inner{0, 1, 2, 5};
  const std::vector<double> outer{0, 3};
  const GivenTerms adapter({{"inner", 0, inner, ParameterRole::inner},
                            {"first", 0, {1, 2}, ParameterRole::shape},
                            {"outer", 0, outer, ParameterRole::outer},
                            {"second", 0, {1, 2, 3}, ParameterRole::shape}},
                           points);
  const auto labels = labels_below(30, 4);
  const auto found = search_grid(adapter, {adapter.features(), {}}, labels);
  ASSERT_EQ(found.correct.sizes(), at::IntArrayRef({4, 2, 2, 3}));
  for (int64_t i = 0; i < 4; ++i) {
    for (int64_t f = 0; f < 2; ++f) {
      for (int64_t o = 0; o < 2; ++o) {
        for (int64_t s = 0; s < 3; ++s) {
          EXPECT_EQ(found.correct[i][f][o][s].item<int64_t>(),
                    brute_force(points[static_cast<size_t>(f * 3 + s)], labels, outer[static_cast<size_t>(o)],
                                inner[static_cast<size_t>(i)]));
        }
      }
    }
  }
}

TEST(GridSearchTest, WorksWithoutParameters) {
  const ScoreTerms terms{test::adapt_field(1, 9, 3), {}, {}};
  const GivenTerms adapter({}, {terms});
  const auto labels = labels_below(9, 3);
  const auto found = search_grid(adapter, {adapter.features(), {}}, labels);
  EXPECT_EQ(found.best_correct(), brute_force(terms, labels, 0, 0));
  EXPECT_TRUE(found.best().empty());
}

TEST(GridSearchTest, FindsTheReferencePointOfTipX) {
  const auto f = test::adapt_fixture_f2();
  TextClassifier classifier;
  classifier.weights = f.weights;
  const SupportFeatures support{f.keys, f.labels, 6, {}};
  TipX tip_x({.aggregate = Aggregate::sum});
  tip_x.fit(support, classifier);
  tip_x.observe({f.queries, {}});
  const auto found = search_grid(tip_x, {f.queries, {}}, f.targets);
  const auto best = found.best();
  EXPECT_NEAR(best[0], 0.1, 1e-12);
  EXPECT_NEAR(best[1], 1, 1e-12);
  EXPECT_NEAR(best[2], 3.688, 1e-12);
  EXPECT_EQ(found.best_correct(), 6);
  EXPECT_EQ(found.num_samples, 12);

  TipAdapter tip;
  tip.fit(support, classifier);
  const auto tip_found = search_grid(tip, {f.queries, {}}, f.targets);
  EXPECT_NEAR(tip_found.best()[0], 0.1, 1e-12);
  EXPECT_NEAR(tip_found.best()[1], 0.1, 1e-12);
  EXPECT_EQ(tip_found.best_correct(), 5);
}

TEST(GridSearchTest, EqualsBruteForceOnTipX) {
  const auto f = test::adapt_fixture_f2();
  TextClassifier classifier;
  classifier.weights = f.weights.to(at::kFloat);
  TipX tip_x;
  tip_x.fit(SupportFeatures{f.keys, f.labels, 6, {}}.to(at::kFloat), classifier);
  const auto queries = f.queries.to(at::kFloat);
  const auto found = search_grid(tip_x, {queries, {}}, f.targets);
  const auto parameters = tip_x.parameters();
  tip_x.visit_terms({queries, {}}, [&](int64_t, int64_t point, const ScoreTerms& terms) {
    if (point % 40 != 7) return;
    for (size_t a = 0; a < 20; ++a) {
      for (size_t g = 0; g < 50; ++g) {
        EXPECT_EQ(found.correct[static_cast<int64_t>(a)][point][static_cast<int64_t>(g)].item<int64_t>(),
                  brute_force(terms, f.targets, parameters[0].grid[a], parameters[2].grid[g]));
      }
    }
  });
}

TEST(GridSearchTest, SearchesAllImagesHoweverManyThereAre) {
  const auto f = test::adapt_fixture(36, 24, 6, 4, 700);
  TextClassifier classifier;
  classifier.weights = f.weights;
  TipAdapter tip;
  tip.fit({f.keys, f.labels, 6, {}}, classifier);
  const auto all = search_grid(tip, {f.queries, {}}, f.targets);
  auto parts = search_grid(tip, {f.queries.slice(0, 0, 70), {}}, f.targets.slice(0, 0, 70));
  for (int64_t begin = 70; begin < 700; begin += 70) {
    parts.add(search_grid(tip, {f.queries.slice(0, begin, begin + 70), {}}, f.targets.slice(0, begin, begin + 70)));
  }
  EXPECT_TRUE(all.correct.equal(parts.correct));
  EXPECT_EQ(all.num_samples, 700);
}

TEST(GridSearchTest, OfEqualPointsTheFirstIsBestAndThePlateauIsWhereNeighboursAreGood) {
  GridAccuracy accuracy;
  accuracy.parameters = {{"a", 0, {1, 2}, ParameterRole::outer}, {"b", 0, {10, 20, 30, 40}, ParameterRole::inner}};
  accuracy.correct = at::tensor(std::vector<int64_t>{5, 9, 1, 8, 2, 3, 9, 9}, at::kLong).reshape({2, 4});
  accuracy.num_samples = 10;
  EXPECT_EQ(accuracy.best(), (ParameterValues{1, 20}));
  EXPECT_EQ(accuracy.best_correct(), 9);
  EXPECT_EQ(accuracy.plateau_centre(), (ParameterValues{2, 40}));
  const auto ranges = accuracy.sensitivity();
  EXPECT_DOUBLE_EQ(ranges[0].lowest, 0.3);
  EXPECT_DOUBLE_EQ(ranges[0].highest, 0.9);
  EXPECT_DOUBLE_EQ(ranges[1].lowest, 0.1);
  EXPECT_DOUBLE_EQ(ranges[1].highest, 0.9);
}

/// Remembers what it was fitted on and asked.
class Spy : public ZeroShotAdapter {
 public:
  explicit Spy(std::vector<std::set<double>>* fits) : fits_(fits) {}

 protected:
  void do_fit(const SupportFeatures& support, const TextClassifier&) override {
    EXPECT_GE(support.counts().min().item<int64_t>(), 1);
    auto& own = fits_->emplace_back();
    for (int64_t i = 0; i < support.size(); ++i) own.insert(support.keys[i][0].item<double>());
  }
  ScoreTerms terms(const QueryFeatures& tile, const ParameterValues& values) const override {
    for (int64_t i = 0; i < tile.size(); ++i) EXPECT_FALSE(fits_->back().contains(tile.features[i][0].item<double>()));
    return ZeroShotAdapter::terms(tile, values);
  }
  bool needs_support() const override { return true; }

 private:
  std::vector<std::set<double>>* fits_;
};

TEST(GridSearchTest, CrossValidationTestsEveryRowOnceOnOthers) {
  const auto f = test::adapt_fixture_f2();
  TextClassifier classifier;
  classifier.weights = f.weights;
  const SupportFeatures support{f.keys, f.labels, 6, {}};
  std::vector<std::set<double>> fits;
  const auto found = cross_validate([&] { return std::make_unique<Spy>(&fits); }, support, classifier);
  EXPECT_EQ(fits.size(), 4U);  // the rows of a class
  EXPECT_EQ(found.num_samples, 24);
  EXPECT_EQ(found.best_correct(), brute_force({100 * f.keys.matmul(f.weights.t()), {}, {}}, f.labels, 0, 0));
}

TEST(GridSearchTest, CrossValidationIsTheSameForTheSameSeed) {
  const auto f = test::adapt_fixture_f2();
  TextClassifier classifier;
  classifier.weights = f.weights;
  const SupportFeatures support{f.keys, f.labels, 6, {}};
  const auto make = [] { return std::make_unique<TipAdapter>(); };
  const auto once = cross_validate(make, support, classifier, {.folds = 2, .seed = 3});
  EXPECT_TRUE(once.correct.equal(cross_validate(make, support, classifier, {.folds = 2, .seed = 3}).correct));
}

TEST(GridSearchTest, SaysWhatIsWrong) {
  const auto f = test::adapt_fixture_f2();
  TextClassifier classifier;
  classifier.weights = f.weights;
  classifier.class_names = {"ant", "bee", "cat", "dog", "eel", "fox"};
  const auto single = SupportFeatures{f.keys, f.labels, 6, {}}.rows(
      at::tensor(std::vector<int64_t>{0, 1, 4, 8, 9, 12, 13, 16, 17, 20, 21}, at::kLong));
  EXPECT_EQ(test::message_of<DataError>(
                [&] { cross_validate([] { return std::make_unique<TipAdapter>(); }, single, classifier); }),
            "[support-cv] class \"bee\" has a single row, so that none can be held out: take the protocol fixed");
  ZeroShotAdapter zero_shot;
  zero_shot.fit({}, classifier);
  EXPECT_EQ(test::message_of<DataError>([&] {
              search_grid(zero_shot, {f.queries, {}}, f.targets + 1);
            }),
            "[search_grid] labels must be in [0, 6), but that of image 5 is 6");
  EXPECT_EQ(test::message_of<ConfigError>([] { parse_protocol("cv"); }),
            "there is no protocol \"cv\": must be fixed, support-cv, val or test-oracle");
}

}  // namespace
}  // namespace contrastive::adapt
