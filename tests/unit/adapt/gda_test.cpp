#include "contrastive/adapt/gda.h"

#include <cmath>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/adapt_cases.h"

namespace contrastive::adapt {
namespace {

using test::classifier_of;
using test::random_support;
using test::tensors_equal;
using test::tensors_near;
using test::unit_rows;

using Matrix = std::vector<std::vector<double>>;

Matrix to_matrix(const torch::Tensor& tensor) {
  Matrix rows;
  for (int64_t i = 0; i < tensor.size(0); ++i) {
    rows.emplace_back();
    for (int64_t k = 0; k < tensor.size(1); ++k) rows.back().push_back(tensor[i][k].item<double>());
  }
  return rows;
}

/// By Gauss and Jordan, with the largest pivot.
Matrix inverse(Matrix a) {
  const auto n = a.size();
  Matrix b(n, std::vector<double>(n, 0));
  for (size_t i = 0; i < n; ++i) b[i][i] = 1;
  for (size_t column = 0; column < n; ++column) {
    size_t pivot = column;
    for (size_t i = column; i < n; ++i) {
      if (std::abs(a[i][column]) > std::abs(a[pivot][column])) pivot = i;
    }
    std::swap(a[column], a[pivot]);
    std::swap(b[column], b[pivot]);
    const double head = a[column][column];
    for (size_t k = 0; k < n; ++k) a[column][k] /= head, b[column][k] /= head;
    for (size_t i = 0; i < n; ++i) {
      if (i == column) continue;
      const double factor = a[i][column];
      for (size_t k = 0; k < n; ++k) a[i][k] -= factor * a[column][k], b[i][k] -= factor * b[column][k];
    }
  }
  return b;
}

/// The formulas of the paper in loops: the logits of one image for every class.
std::vector<double> naive_logits(const Matrix& samples, const std::vector<int64_t>& labels, const Matrix& weights,
                                 const std::vector<double>& image, double alpha) {
  const auto num_classes = weights.size();
  const auto dim = image.size();
  const auto n = static_cast<double>(samples.size());
  Matrix means(num_classes, std::vector<double>(dim, 0));
  std::vector<double> counts(num_classes, 0);
  for (size_t j = 0; j < samples.size(); ++j) {
    counts[static_cast<size_t>(labels[j])] += 1;
    for (size_t d = 0; d < dim; ++d) means[static_cast<size_t>(labels[j])][d] += samples[j][d];
  }
  for (size_t c = 0; c < num_classes; ++c) {
    for (auto& value : means[c]) value /= counts[c];
  }
  Matrix shrunk(dim, std::vector<double>(dim, 0));
  double trace = 0;
  for (size_t j = 0; j < samples.size(); ++j) {
    const auto& mean = means[static_cast<size_t>(labels[j])];
    for (size_t d = 0; d < dim; ++d) {
      trace += (samples[j][d] - mean[d]) * (samples[j][d] - mean[d]) / (n - 1);
      for (size_t e = 0; e < dim; ++e) shrunk[d][e] += (samples[j][d] - mean[d]) * (samples[j][e] - mean[e]);
    }
  }
  for (size_t d = 0; d < dim; ++d) shrunk[d][d] += trace;
  const auto precision = inverse(shrunk);
  std::vector<double> logits;
  for (size_t c = 0; c < num_classes; ++c) {
    double logit = -alpha * std::log(static_cast<double>(num_classes));
    for (size_t d = 0; d < dim; ++d) {
      logit += 100 * image[d] * weights[c][d];
      for (size_t e = 0; e < dim; ++e) {
        logit += alpha * static_cast<double>(dim) * precision[d][e] * means[c][e] * (image[d] - means[c][d] / 2);
      }
    }
    logits.push_back(logit);
  }
  return logits;
}

torch::Tensor fitted_logits(const SupportFeatures& support, const TextClassifier& classifier,
                            const torch::Tensor& queries, double alpha = 1) {
  Gda gda;
  gda.fit(support, classifier);
  return gda.logits(queries, {alpha});
}

TEST(GdaTest, ReproducesTheFixture) {
  const auto fixture = test::adapt_fixture_f2();
  const auto logits = fitted_logits(test::support_of(fixture), classifier_of(fixture.weights), fixture.queries);
  EXPECT_NEAR(logits.sum().item<double>(), 1259.444342777, 1e-9);
  const auto expected = test::indices({0, 0, 4, 5, 4, 1, 0, 2, 0, 3, 4, 0});
  EXPECT_TRUE(tensors_equal("predictions", test::predictions(logits), expected));

  const auto single = fitted_logits(test::support_of(fixture).to(at::kFloat),
                                    classifier_of(fixture.weights).to(at::kFloat), fixture.queries.to(at::kFloat));
  EXPECT_EQ(single.scalar_type(), at::kFloat);
  EXPECT_TRUE(tensors_near("fp32 logits", single.to(at::kDouble), logits, {.absolute = 2e-4}));
  EXPECT_TRUE(tensors_equal("fp32 predictions", test::predictions(single), expected));
}

TEST(GdaTest, EqualsTheFormulasInLoopsWithViewsAndClassesOfDifferentSize) {
  const auto support = random_support({1, 4, 2}, 7, 3, 1);
  const auto weights = unit_rows({3, 7}, 5);
  const auto queries = unit_rows({6, 7}, 6);
  const auto logits = fitted_logits(support, classifier_of(weights), queries, 0.5);
  Matrix samples;
  std::vector<int64_t> labels;
  for (int64_t row = 0; row < support.size(); ++row) {
    for (const auto& view : to_matrix(support.views[row])) {
      samples.push_back(view);
      labels.push_back(support.labels[row].item<int64_t>());
    }
  }
  const auto images = to_matrix(queries);
  for (size_t i = 0; i < images.size(); ++i) {
    const auto expected = naive_logits(samples, labels, to_matrix(weights), images[i], 0.5);
    for (size_t c = 0; c < expected.size(); ++c) {
      EXPECT_NEAR(logits[static_cast<int64_t>(i)][static_cast<int64_t>(c)].item<double>(), expected[c], 1e-10)
          << "image " << i << ", class " << c;
    }
  }
}

TEST(GdaTest, EqualsTheFormulasWithMoreRowsThanAreTakenAtATime) {
  // More rows than are summed up at a time.
  const auto many = random_support({2500, 1700}, 4, 0, 2);
  const auto classifier = classifier_of(unit_rows({2, 4}, 3));
  const auto queries = unit_rows({5, 4}, 4);
  Matrix samples = to_matrix(many.keys);
  std::vector<int64_t> labels(many.labels.data_ptr<int64_t>(), many.labels.data_ptr<int64_t>() + many.size());
  const auto logits = fitted_logits(many, classifier, queries);
  const auto expected =
      naive_logits(samples, labels, to_matrix(classifier.weights), to_matrix(queries.slice(0, 0, 1))[0], 1);
  for (int64_t c = 0; c < 2; ++c) {
    EXPECT_NEAR(logits[0][c].item<double>(), expected[static_cast<size_t>(c)], 1e-9);
  }
}

TEST(GdaTest, WithoutSpreadWithinClassesIsTheNearestClassMean) {
  const auto support = random_support({1, 1, 1, 1}, 8, 0, 11);
  const auto queries = unit_rows({20, 8}, 12);
  const auto logits = fitted_logits(support, classifier_of(at::zeros({4, 8}, at::kDouble)), queries);
  const auto distances = at::cdist(queries, support.keys);
  EXPECT_TRUE(tensors_equal("predictions", test::predictions(logits), distances.argmin(1)));
  const auto expected = (queries.matmul(support.keys.t()) - 0.5) * 8 - std::log(4.0);
  EXPECT_TRUE(tensors_near("logits", logits, expected, {.absolute = 1e-12}));
}

TEST(GdaTest, DoesNotDependOnOrderOfRowsClassesOrOnAxes) {
  const auto support = random_support({3, 2, 4}, 6, 2, 21);
  const auto weights = unit_rows({3, 6}, 22);
  const auto queries = unit_rows({9, 6}, 23);
  const auto logits = fitted_logits(support, classifier_of(weights), queries);

  const auto shuffled = support.rows(test::indices({2, 0, 1, 4, 3, 8, 6, 7, 5}));
  EXPECT_TRUE(
      tensors_near("rows", fitted_logits(shuffled, classifier_of(weights), queries), logits, {.absolute = 1e-10}));

  const auto place = test::indices({2, 0, 1});  // class c becomes place[c]
  const auto permuted = fitted_logits(test::permuted_classes(support, place),
                                      classifier_of(weights.index_select(0, place.argsort())), queries);
  EXPECT_TRUE(tensors_near("classes", permuted.index_select(1, place), logits, {.absolute = 1e-10}));

  const auto turn = test::rotation(6, 24);
  const SupportFeatures turned{support.keys.matmul(turn), support.labels, 3, support.views.matmul(turn)};
  EXPECT_TRUE(tensors_near("axes", fitted_logits(turned, classifier_of(weights.matmul(turn)), queries.matmul(turn)),
                           logits, {.absolute = 1e-10}));
}

TEST(GdaTest, ScoresTheSameAfterRestore) {
  const auto fixture = test::adapt_fixture_f1();
  Gda fitted;
  fitted.fit(test::support_of(fixture), classifier_of(fixture.weights));
  Gda empty;
  EXPECT_TRUE(test::scores_after_restore(fitted, empty, {fixture.queries, {}}));
}

TEST(GdaTest, SearchesPowersOfTen) {
  const auto parameters = Gda().parameters();
  ASSERT_EQ(parameters.size(), 1U);
  EXPECT_EQ(parameters[0].name, "alpha");
  EXPECT_EQ(parameters[0].fixed, 1);
  EXPECT_EQ(parameters[0].role, ParameterRole::inner);
  EXPECT_EQ(parameters[0].grid, (std::vector<double>{1e-4, 1e-3, 1e-2, 1e-1, 1, 10, 100}));
}

}  // namespace
}  // namespace contrastive::adapt
