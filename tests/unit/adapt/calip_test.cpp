#include "contrastive/adapt/calip.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"

#include "tests/support/adapt_cases.h"
#include "tests/support/errors.h"

namespace contrastive::adapt {
namespace {

using test::classifier_of;
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

/// The published steps for one image, number by number.
std::vector<double> naive_logits(const std::vector<double>& image, const Matrix& places, const Matrix& text, double b2,
                                 double b3) {
  const auto num_places = places.size();
  const auto num_classes = text.size();
  const auto dim = image.size();
  Matrix exponentials(num_places, std::vector<double>(num_classes, 0));
  std::vector<double> over_places(num_classes, 0);
  std::vector<double> over_classes(num_places, 0);
  for (size_t t = 0; t < num_places; ++t) {
    for (size_t c = 0; c < num_classes; ++c) {
      double cosine = 0;
      for (size_t d = 0; d < dim; ++d) cosine += places[t][d] * text[c][d];
      exponentials[t][c] = std::exp(2 * cosine);
      over_places[c] += exponentials[t][c];
      over_classes[t] += exponentials[t][c];
    }
  }
  Matrix text_of_image(num_classes, std::vector<double>(dim, 0));
  std::vector<double> mean(dim, 0);
  std::vector<double> largest(dim, -std::numeric_limits<double>::infinity());
  for (size_t t = 0; t < num_places; ++t) {
    for (size_t d = 0; d < dim; ++d) {
      double value = 0;
      for (size_t c = 0; c < num_classes; ++c) {
        text_of_image[c][d] += exponentials[t][c] / over_places[c] * places[t][d];
        value += exponentials[t][c] / over_classes[t] * text[c][d];
      }
      mean[d] += value / static_cast<double>(num_places);
      largest[d] = std::max(largest[d], value);
    }
  }
  std::vector<double> logits(num_classes, 0);
  for (size_t c = 0; c < num_classes; ++c) {
    for (size_t d = 0; d < dim; ++d) {
      logits[c] += 100 * (image[d] * text[c][d] + b2 * image[d] * text_of_image[c][d] +
                          b3 * (mean[d] + largest[d]) * text[c][d]);
    }
  }
  return logits;
}

torch::Tensor fitted_logits(const torch::Tensor& weights, const QueryFeatures& queries, const ParameterValues& values) {
  Calip calip;
  calip.fit({}, classifier_of(weights));
  return calip.logits(queries, values);
}

class CalipTest : public ::testing::Test {
 protected:
  torch::Tensor weights = unit_rows({4, 6}, 1);
  QueryFeatures queries{unit_rows({5, 6}, 2), unit_rows({5, 9, 6}, 3)};
};

TEST_F(CalipTest, EqualsThePublishedStepsInLoops) {
  const auto logits = fitted_logits(weights, queries, {1.12, 0.06});
  for (int64_t i = 0; i < queries.size(); ++i) {
    const auto expected = naive_logits(to_matrix(queries.features)[static_cast<size_t>(i)],
                                       to_matrix(queries.tokens[i]), to_matrix(weights), 1.12, 0.06);
    for (int64_t c = 0; c < 4; ++c) {
      EXPECT_NEAR(logits[i][c].item<double>(), expected[static_cast<size_t>(c)], 1e-11)
          << "image " << i << ", class " << c;
    }
  }
}

TEST_F(CalipTest, WithoutAttentionIsTheTextClassifier) {
  EXPECT_TRUE(tensors_near("logits", fitted_logits(weights, queries, {0, 0}),
                           queries.features.matmul(weights.t()) * 100, {.absolute = 1e-12}));
}

TEST_F(CalipTest, ScoresManyImagesAsItScoresOne) {
  // The attention of these 100 images is too large to be taken at once.
  const auto text = unit_rows({600, 16}, 4).to(at::kFloat);
  const QueryFeatures many{unit_rows({100, 16}, 5).to(at::kFloat), unit_rows({100, 200, 16}, 6).to(at::kFloat)};
  const auto logits = fitted_logits(text, many, {1, 0.1});
  for (const int64_t i : {0, 68, 69, 70, 99}) {
    EXPECT_TRUE(tensors_near("logits", logits.slice(0, i, i + 1), fitted_logits(text, many.rows(i, i + 1), {1, 0.1}),
                             {.absolute = 1e-4}))
        << "image " << i;
  }
}

TEST_F(CalipTest, DoesNotDependOnOrderOfClassesPlacesOrOnAxesButForTheMaximum) {
  const auto logits = fitted_logits(weights, queries, {1, 0.1});
  const auto order = test::indices({2, 0, 3, 1});
  EXPECT_TRUE(tensors_near("classes", fitted_logits(weights.index_select(0, order), queries, {1, 0.1}),
                           logits.index_select(1, order), {.absolute = 1e-11}));
  const QueryFeatures flipped{queries.features, queries.tokens.flip(1)};
  EXPECT_TRUE(tensors_near("places", fitted_logits(weights, flipped, {1, 0.1}), logits, {.absolute = 1e-11}));
  const auto turn = test::rotation(6, 7);
  const QueryFeatures turned{queries.features.matmul(turn), queries.tokens.matmul(turn)};
  EXPECT_TRUE(tensors_near("axes", fitted_logits(weights.matmul(turn), turned, {1, 0}),
                           fitted_logits(weights, queries, {1, 0}), {.absolute = 1e-11}));
}

TEST_F(CalipTest, ScoresTheSameAfterRestore) {
  Calip fitted;
  fitted.fit({}, classifier_of(weights));
  Calip empty;
  EXPECT_TRUE(test::scores_after_restore(fitted, empty, queries));
}

TEST_F(CalipTest, SearchesThePublishedGrid) {
  const auto parameters = Calip().parameters();
  ASSERT_EQ(parameters.size(), 2U);
  EXPECT_EQ(parameters[0].role, ParameterRole::outer);
  EXPECT_EQ(parameters[1].role, ParameterRole::inner);
  for (const auto& parameter : parameters) {
    EXPECT_EQ(parameter.grid.size(), 200U);
    EXPECT_DOUBLE_EQ(parameter.grid[0], 0.001);
  }
  EXPECT_DOUBLE_EQ(parameters[0].grid[199], 0.001 + 199 * (2 - 0.001) / 200);
  EXPECT_DOUBLE_EQ(parameters[1].grid[199], 0.001 + 199 * (0.1 - 0.001) / 200);
}

TEST_F(CalipTest, NeedsFiniteSpatialFeatures) {
  const Calip calip;
  EXPECT_TRUE(calip.needs_tokens());
  EXPECT_FALSE(calip.needs_support());
  auto broken = queries;
  broken.tokens = queries.tokens.clone();
  broken.tokens[3][2][1] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(test::message_of<DataError>([&] {
              fitted_logits(weights, broken, {1, 0.1});
            }),
            "[calip] spatial features must be finite");
  const QueryFeatures none{queries.features, queries.tokens.slice(1, 0, 0)};
  EXPECT_THROW(fitted_logits(weights, none, {1, 0.1}), c10::Error);
}

TEST_F(CalipTest, ShowsAndChecksItsOptions) {
  EXPECT_EQ(Calip({.largest_b2 = 5, .largest_b3 = 0.2}).settings(),
            (std::map<std::string, std::string>{{"largest_b2", "5"}, {"largest_b3", "0.2"}}));
  EXPECT_EQ(test::message_of<ConfigError>([] { Calip calip({.largest_b2 = 0}); }),
            "[calip] largest_b2 must be above 0.001, where the search begins, but is 0");
  EXPECT_EQ(test::message_of<ConfigError>([] { Calip calip({.largest_b3 = std::nan("")}); }),
            "[calip] largest_b3 must be above 0.001, where the search begins, but is nan");
}

}  // namespace
}  // namespace contrastive::adapt
