#include "contrastive/adapt/ape.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"

#include "tests/support/adapt_cases.h"
#include "tests/support/errors.h"

namespace contrastive::adapt {
namespace {

using test::classifier_of;
using test::random_support;
using test::tensors_equal;
using test::tensors_near;
using test::unit_rows;

constexpr ApeOptions kFixtureOptions{.dimensions = 16};

/// The mean over pairs of different classes of the products of their members (text and keys) in one dimension, in
/// loops over all pairs of members.
double pairwise_product(const SupportFeatures& support, const torch::Tensor& weights, int64_t dim) {
  std::vector<std::vector<double>> members;
  for (int64_t c = 0; c < weights.size(0); ++c) {
    members.push_back({weights[c][dim].item<double>()});
    for (int64_t j = 0; j < support.size(); ++j) {
      if (support.labels[j].item<int64_t>() == c) members.back().push_back(support.keys[j][dim].item<double>());
    }
  }
  double sum = 0;
  int num_pairs = 0;
  for (size_t a = 0; a < members.size(); ++a) {
    for (size_t b = 0; b < members.size(); ++b) {
      if (a == b) continue;
      double products = 0;
      for (const double x : members[a]) {
        for (const double y : members[b]) products += x * y;
      }
      sum += products / static_cast<double>(members[a].size() * members[b].size());
      ++num_pairs;
    }
  }
  return sum / num_pairs;
}

double variance(const torch::Tensor& weights, int64_t dim) {
  const auto n = static_cast<double>(weights.size(0));
  double mean = 0;
  double squares = 0;
  for (int64_t c = 0; c < weights.size(0); ++c) mean += weights[c][dim].item<double>() / n;
  for (int64_t c = 0; c < weights.size(0); ++c) squares += std::pow(weights[c][dim].item<double>() - mean, 2);
  return squares / (n - 1);
}

std::vector<int64_t> naive_dimensions(const SupportFeatures& support, const torch::Tensor& weights, size_t count,
                                      double inter_class, double text_variance) {
  std::vector<double> scores;
  for (int64_t d = 0; d < weights.size(1); ++d) {
    scores.push_back(text_variance * variance(weights, d) - inter_class * pairwise_product(support, weights, d));
  }
  std::vector<int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  order.resize(count);
  std::sort(order.begin(), order.end());
  return order;
}

std::vector<double> kept(const torch::Tensor& row, const std::vector<int64_t>& dims) {
  std::vector<double> values;
  double squares = 0;
  for (const auto d : dims) {
    values.push_back(row[d].item<double>());
    squares += values.back() * values.back();
  }
  for (auto& value : values) value /= std::sqrt(squares);
  return values;
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

/// The cache's part of one image's logits, a class after the other.
std::vector<double> naive_cache(const SupportFeatures& support, const torch::Tensor& weights,
                                const std::vector<int64_t>& dims, const torch::Tensor& image, double beta,
                                double gamma) {
  std::vector<double> scores(static_cast<size_t>(weights.size(0)), 0);
  for (int64_t j = 0; j < support.size(); ++j) {
    const auto label = support.labels[j].item<int64_t>();
    const auto key = kept(support.keys[j], dims);
    double sum = 0;
    double own = 0;
    for (int64_t c = 0; c < weights.size(0); ++c) {
      const double exponential = std::exp(dot(key, kept(weights[c], dims)));
      sum += exponential;
      if (c == label) own = exponential;
    }
    const double divergence = std::log2((1 + 1e-6) / (own / sum + 1e-6));
    const double affinity = dot(kept(image, dims), key);
    scores[static_cast<size_t>(label)] += std::exp(gamma * divergence) * std::exp(-beta * (1 - affinity));
  }
  return scores;
}

torch::Tensor fitted_logits(const SupportFeatures& support, const TextClassifier& classifier,
                            const torch::Tensor& queries, const ParameterValues& values, ApeOptions options = {}) {
  Ape ape(options);
  ape.fit(support, classifier);
  return ape.logits(queries, values);
}

TEST(ApeTest, ReproducesTheFixture) {
  const auto fixture = test::adapt_fixture_f2();
  Ape ape(kFixtureOptions);
  ape.fit(test::support_of(fixture), classifier_of(fixture.weights));
  EXPECT_TRUE(tensors_equal("dimensions", ape.dimensions(),
                            test::indices({0, 1, 2, 6, 8, 9, 10, 11, 12, 13, 17, 18, 19, 20, 21, 22})));
  EXPECT_EQ(ape.fixed_values(), (ParameterValues{1, 0.1, 2}));
  const auto logits = ape.logits(fixture.queries, ape.fixed_values());
  EXPECT_NEAR(logits.sum().item<double>(), 1485.502928315, 1e-9);
  const auto expected = test::indices({0, 0, 2, 5, 4, 1, 0, 5, 0, 4, 4, 0});
  EXPECT_TRUE(tensors_equal("predictions", test::predictions(logits), expected));

  const auto single =
      fitted_logits(test::support_of(fixture).to(at::kFloat), classifier_of(fixture.weights).to(at::kFloat),
                    fixture.queries.to(at::kFloat), ape.fixed_values(), kFixtureOptions);
  EXPECT_EQ(single.scalar_type(), at::kFloat);
  EXPECT_TRUE(tensors_near("fp32 logits", single.to(at::kDouble), logits, {.absolute = 2e-4}));
  EXPECT_TRUE(tensors_equal("fp32 predictions", test::predictions(single), expected));
}

TEST(ApeTest, EqualsTheFormulasInLoopsWithClassesOfDifferentSize) {
  const auto support = random_support({1, 4, 2}, 9, 0, 1);
  const auto weights = unit_rows({3, 9}, 2);
  const auto queries = unit_rows({5, 9}, 3);
  Ape ape({.dimensions = 0, .inter_class_weight = 0.5, .text_variance_weight = 0.5});
  ape.fit(support, classifier_of(weights));
  const auto dims = naive_dimensions(support, weights, 5, 0.5, 0.5);
  EXPECT_TRUE(tensors_equal("dimensions", ape.dimensions(), test::indices(dims)));
  const auto logits = ape.logits(queries, {3, 0.3, 1.5});
  for (int64_t i = 0; i < queries.size(0); ++i) {
    const auto cache = naive_cache(support, weights, dims, queries[i], 3, 0.3);
    for (int64_t c = 0; c < 3; ++c) {
      const double expected = 100 * queries[i].dot(weights[c]).item<double>() + 1.5 * cache[static_cast<size_t>(c)];
      EXPECT_NEAR(logits[i][c].item<double>(), expected, 1e-11) << "image " << i << ", class " << c;
    }
  }
}

TEST(ApeTest, VisitsTheTermsOfEveryPointOfTheGrid) {
  const auto fixture = test::adapt_fixture_f1();
  Ape ape;
  ape.fit(test::support_of(fixture), classifier_of(fixture.weights));
  const auto parameters = ape.parameters();
  const auto& betas = parameters[0].grid;
  const auto& gammas = parameters[1].grid;
  int64_t next = 0;
  ape.visit_terms({fixture.queries, {}}, [&](int64_t first_row, int64_t point, const ScoreTerms& terms) {
    EXPECT_EQ(first_row, 0);
    EXPECT_EQ(point, next++);
    const auto beta = betas[static_cast<size_t>(point) / gammas.size()];
    const auto gamma = gammas[static_cast<size_t>(point) % gammas.size()];
    EXPECT_FALSE(terms.outer.defined());
    EXPECT_TRUE(tensors_near("logits", terms.base + terms.inner * 2, ape.logits(fixture.queries, {beta, gamma, 2}),
                             {.absolute = 1e-12}))
        << "beta " << beta << ", gamma " << gamma;
  });
  EXPECT_EQ(next, static_cast<int64_t>(betas.size() * gammas.size()));
}

TEST(ApeTest, DoesNotDependOnOrderOfRowsOrClasses) {
  const auto support = random_support({3, 2, 4}, 8, 0, 21);
  const auto weights = unit_rows({3, 8}, 22);
  const auto queries = unit_rows({9, 8}, 23);
  const ParameterValues values{2, 0.1, 2};
  const auto logits = fitted_logits(support, classifier_of(weights), queries, values);
  const auto shuffled = support.rows(test::indices({2, 0, 1, 4, 3, 8, 6, 7, 5}));
  EXPECT_TRUE(tensors_near("rows", fitted_logits(shuffled, classifier_of(weights), queries, values), logits,
                           {.absolute = 1e-10}));
  const auto place = test::indices({2, 0, 1});
  const auto permuted = fitted_logits(test::permuted_classes(support, place),
                                      classifier_of(weights.index_select(0, place.argsort())), queries, values);
  EXPECT_TRUE(tensors_near("classes", permuted.index_select(1, place), logits, {.absolute = 1e-10}));
}

TEST(ApeTest, WithAllDimensionsAndNoWeightingIsTipAdapter) {
  const auto fixture = test::adapt_fixture_f2();
  const auto logits = fitted_logits(test::support_of(fixture), classifier_of(fixture.weights), fixture.queries,
                                    {5.5, 0, 50}, {.dimensions = 24});
  EXPECT_NEAR(logits.sum().item<double>(), 1858.814477390, 1e-9);
}

TEST(ApeTest, ScoresTheSameAfterRestore) {
  const auto fixture = test::adapt_fixture_f1();
  Ape fitted;
  fitted.fit(test::support_of(fixture), classifier_of(fixture.weights));
  Ape empty;
  EXPECT_TRUE(test::scores_after_restore(fitted, empty, {fixture.queries, {}}));
}

TEST(ApeTest, ShowsItsSettings) {
  const Ape ape({.dimensions = 500, .inter_class_weight = 0.5, .text_variance_weight = 0.25});
  EXPECT_EQ(ape.settings(),
            (std::map<std::string, std::string>{
                {"dimensions", "500"}, {"inter_class_weight", "0.5"}, {"text_variance_weight", "0.25"}}));
}

TEST(ApeTest, RefusesOptionsOutOfRange) {
  EXPECT_EQ(test::message_of<ConfigError>([] { Ape ape({.dimensions = -1}); }),
            "[ape] dimensions must be at least 1, or 0 for half of them, but is -1");
  EXPECT_EQ(test::message_of<ConfigError>([] { Ape ape({.inter_class_weight = -0.5}); }),
            "[ape] inter_class_weight must be at least 0, but is -0.5");
  EXPECT_EQ(
      test::message_of<ConfigError>([] { Ape ape({.text_variance_weight = std::numeric_limits<double>::infinity()}); }),
      "[ape] text_variance_weight must be at least 0, but is inf");
  const auto fixture = test::adapt_fixture_f2();
  Ape ape({.dimensions = 25});
  EXPECT_EQ(test::message_of<ConfigError>([&] { ape.fit(test::support_of(fixture), classifier_of(fixture.weights)); }),
            "[ape] dimensions must be at most 24, the features' width, but is 25");
}

}  // namespace
}  // namespace contrastive::adapt
