#include "contrastive/eval/logistic_regression.h"

#include <cmath>
#include <limits>
#include <string>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/core/log.h"
#include "contrastive/core/safetensors.h"

#include "tests/support/errors.h"
#include "tests/support/paths.h"
#include "tests/support/tensors.h"

namespace contrastive::eval {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// Classes that overlap, off the origin.
struct Samples {
  torch::Tensor features;
  torch::Tensor labels;
};

Samples samples(int64_t count, int64_t dim, int64_t classes, torch::ScalarType dtype = at::kDouble) {
  const auto labels = at::arange(count) % classes;
  const auto centres = test::random_normal({classes, dim}, 1, at::kDouble);
  const auto features = test::random_normal({count, dim}, 2, at::kDouble) + centres.index_select(0, labels) + 1.5;
  return {features.to(dtype), labels};
}

/// The objective as the header states it.
double stated_objective(const Samples& set, const LinearClassifier& classifier, double c) {
  const auto scores = classifier.scores(set.features.to(at::kDouble));
  const auto losses = at::cross_entropy_loss(scores, set.labels, {}, at::Reduction::Sum);
  const double factor = classifier.bias.size(0) == 2 ? 1 : 0.5;
  return c * losses.item<double>() + factor * classifier.weights.square().sum().item<double>();
}

/// Rows [w0, w1] of two classes as scikit-learn's single row.
LinearClassifier as_scikit_learn(const LinearClassifier& found, int64_t rows) {
  if (rows > 1) return found;
  return {found.weights.slice(0, 1, 2) - found.weights.slice(0, 0, 1), found.bias.slice(0, 1, 2) - found.bias[0]};
}

TEST(LogisticRegressionTest, EqualsScikitLearn) {
  const SafetensorsFile file(test::own_fixtures_dir() / "logistic_regression" / "logistic_regression.safetensors");
  const auto meta = test::meta_of(file);
  const auto cs = test::numbers_at(meta, "c");
  for (const std::string name : {"two", "many", "wide", "tall"}) {
    const auto& expected = *meta.find("cases")->find(name);
    const auto train_y = file.tensor(name + "/train_y"), test_y = file.tensor(name + "/test_y");
    const auto classes = train_y.max().item<int64_t>() + 1;
    for (const auto dtype : {at::kDouble, at::kFloat}) {
      LogisticRegression regression(file.tensor(name + "/train_x").to(dtype), train_y, classes);
      const auto test_x = file.tensor(name + "/test_x").to(dtype);
      for (size_t i = 0; i < cs.size(); ++i) {
        SCOPED_TRACE(name + ", c = " + std::to_string(cs[i]) + ", " + c10::toString(dtype));
        const bool is_fp64 = dtype == at::kDouble;
        const auto found = regression.fit(
            {.c = cs[i], .tolerance = is_fp64 ? 1e-9 : 1e-5, .objective_tolerance = is_fp64 ? 1e-12 : 1e-7});
        EXPECT_TRUE(found.converged);
        const double objective = test::numbers_at(expected, "objective")[i];
        EXPECT_NEAR(found.objective, objective, objective * (is_fp64 ? 1e-9 : 1e-6));
        const auto coef = file.tensor(name + "/coef" + std::to_string(i));
        const auto classifier = as_scikit_learn(found.classifier, coef.size(0));
        EXPECT_TRUE(test::tensors_near("weights", classifier.weights.to(at::kDouble), coef,
                                       is_fp64 ? test::Tolerance{1e-6, 1e-4} : test::Tolerance{1e-3, 2e-3}));
        EXPECT_TRUE(test::tensors_near("bias", classifier.bias.to(at::kDouble),
                                       file.tensor(name + "/intercept" + std::to_string(i)),
                                       is_fp64 ? test::Tolerance{1e-6, 1e-4} : test::Tolerance{2e-3, 2e-3}));
        const auto is_hit = found.classifier.scores(test_x).argmax(1).eq(test_y);
        EXPECT_NEAR(is_hit.to(at::kDouble).mean().item<double>(), test::numbers_at(expected, "accuracy")[i], 1e-12);
      }
    }
  }
}

TEST(LogisticRegressionTest, TheDefaultTolerancesEndNearTheMinimumWhateverTheFeaturesScale) {
  for (const double scale : {0.01, 1.0, 100.0}) {
    const auto set = samples(300, 8, 3);
    LogisticRegression regression(set.features * scale, set.labels, 3);
    const double c = 10 / (scale * scale);
    const auto found = regression.fit({.c = c});
    const auto exact = regression.fit({.c = c, .tolerance = 1e-8, .objective_tolerance = 1e-11});
    EXPECT_TRUE(found.converged && exact.converged) << scale;
    EXPECT_NEAR(found.objective, exact.objective, exact.objective * 1e-5) << scale;
  }
}

TEST(LogisticRegressionTest, ObjectiveIsTheStatedOneAndItsGradientsAreItsDifferences) {
  for (const int64_t classes : {2, 4}) {
    const auto set = samples(30, 5, classes);
    LogisticRegression regression(set.features, set.labels, classes);
    LinearClassifier at_point{test::random_normal({classes, 5}, 4, at::kDouble),
                              test::random_normal({classes}, 5, at::kDouble)};
    const auto found = regression.objective(at_point, 0.7);
    EXPECT_NEAR(found.value, stated_objective(set, at_point, 0.7), 1e-10);
    constexpr double kStep = 1e-6;
    const auto difference = [&](torch::Tensor element) {
      const double before = element.item<double>();
      element.fill_(before + kStep);
      const double above = stated_objective(set, at_point, 0.7);
      element.fill_(before - kStep);
      const double below = stated_objective(set, at_point, 0.7);
      element.fill_(before);
      return (above - below) / (2 * kStep);
    };
    for (int64_t c = 0; c < classes; ++c) {
      EXPECT_NEAR(found.bias_gradient[c].item<double>(), difference(at_point.bias[c]), 1e-6);
      for (int64_t d = 0; d < 5; ++d) {
        EXPECT_NEAR(found.weight_gradient[c][d].item<double>(), difference(at_point.weights[c][d]), 1e-6);
      }
    }
  }
}

TEST(LogisticRegressionTest, LossesOfNearlyCertainSamplesKeepTheirPrecisionInFp32) {
  const auto features = at::eye(2, at::kFloat), labels = at::arange(2);
  LogisticRegression regression(features, labels, 2);
  const LinearClassifier certain{at::eye(2, at::kFloat) * 20, at::zeros({2})};
  const auto found = regression.objective(certain, 1);
  const double penalty = 800;  // |W|^2
  EXPECT_NEAR(found.value - penalty, 2 * std::log1p(std::exp(-20.0)), 1e-12);
  const double p = std::exp(-20.0) / (1 + std::exp(-20.0));
  EXPECT_NEAR(found.bias_gradient[0].item<double>(), 0, p * 1e-5);
  EXPECT_NEAR(found.weight_gradient[0][0].item<double>() - 40, -p, 1e-12);
}

TEST(LogisticRegressionTest, TilesPartsAndRowsChangeNothing) {
  const auto set = samples(203, 6, 3);
  const LogisticRegressionOptions options{.c = 2, .tolerance = 1e-10, .objective_tolerance = 1e-14};
  const auto whole = LogisticRegression(set.features, set.labels, 3).fit(options);
  const auto expect_same = [&](LogisticRegression& regression) {
    const auto found = regression.fit(options);
    EXPECT_NEAR(found.objective, whole.objective, 1e-9);
    EXPECT_TRUE(test::tensors_near("weights", found.classifier.weights, whole.classifier.weights, {1e-7, 0}));
  };
  for (const int64_t rows : {1, 7, 64, 202}) {
    LogisticRegression tiled(set.features, set.labels, 3);
    tiled.set_tile_rows(rows);
    expect_same(tiled);
  }
  LogisticRegression parts({{set.features.slice(0, 0, 50), set.labels.slice(0, 0, 50)},
                            {set.features.slice(0, 50), set.labels.slice(0, 50)}},
                           3);
  EXPECT_EQ(parts.num_samples(), 203);
  expect_same(parts);
  const auto rows = at::arange(203);  // amid rows that don't take part
  const auto noise = at::full({203, 6}, 1e3, at::kDouble);
  LogisticRegression chosen(
      {{at::cat({noise, set.features}), at::cat({at::zeros_like(set.labels), set.labels}), rows + 203}}, 3);
  EXPECT_EQ(chosen.num_samples(), 203);
  expect_same(chosen);
}

TEST(LogisticRegressionTest, ReadsFeaturesThatAreMappedFromAFile) {
  const auto set = samples(100, 6, 3, at::kFloat);
  const test::TemporaryDirectory folder;
  write_safetensors(folder.path() / "x.safetensors", {{"features", set.features}, {"labels", set.labels}});
  const SafetensorsFile file(folder.path() / "x.safetensors");
  const auto mapped = LogisticRegression(file.tensor("features"), file.tensor("labels"), 3).fit({});
  const auto direct = LogisticRegression(set.features, set.labels, 3).fit({});
  EXPECT_TRUE(test::same_bytes(mapped.classifier.weights, direct.classifier.weights));
  EXPECT_EQ(mapped.objective, direct.objective);
}

TEST(LogisticRegressionTest, AnotherStartGivesTheSameSolutionSooner) {
  const auto set = samples(400, 6, 3);
  LogisticRegression regression(set.features, set.labels, 3);
  LogisticRegressionOptions options{.c = 1, .tolerance = 1e-9, .objective_tolerance = 1e-12};
  const auto cold = regression.fit(options);
  options.c = 0.9;
  const auto near = regression.fit(options);
  options.c = 1;
  const auto warm = regression.fit(options, near.classifier);
  EXPECT_LT(warm.iterations, cold.iterations);
  EXPECT_NEAR(warm.objective, cold.objective, cold.objective * 1e-10);
  EXPECT_TRUE(test::tensors_near("weights", warm.classifier.weights, cold.classifier.weights, {1e-5, 0}));
  const auto again = regression.fit(options, cold.classifier);
  EXPECT_EQ(again.iterations, 0);
}

TEST(LogisticRegressionTest, AClassWithoutSamplesIsNeverChosen) {
  const auto set = samples(90, 5, 3);
  const auto found = LogisticRegression(set.features, set.labels, 5).fit({});
  EXPECT_TRUE(found.converged);
  EXPECT_LT(found.classifier.scores(set.features).argmax(1).max().item<int64_t>(), 3);
  EXPECT_LT(found.classifier.bias.slice(0, 3).max().item<double>(),
            found.classifier.bias.slice(0, 0, 3).min().item<double>());
}

TEST(LogisticRegressionTest, WarnsWhenItEndsBeforeConvergence) {
  const auto set = samples(90, 5, 3);
  std::string warning;
  set_log_sink([&](LogLevel level, std::string_view message) {
    if (level == LogLevel::warning) warning = message;
  });
  const auto found = LogisticRegression(set.features, set.labels, 3).fit({.c = 100, .max_iterations = 1});
  set_log_sink({});
  EXPECT_FALSE(found.converged);
  EXPECT_NE(warning.find("c = 100: stopped after 1 iterations, before convergence: max_iterations is reached"),
            std::string::npos)
      << warning;
}

TEST(LogisticRegressionTest, RefusesWhatCannotBeFitted) {
  const auto set = samples(12, 4, 3);
  const auto message = [&](const torch::Tensor& features, const torch::Tensor& labels, int64_t classes) {
    return test::message_of<DataError>([&] { LogisticRegression(features, labels, classes).fit({}); });
  };
  EXPECT_EQ(message(set.features, set.labels, 2),
            "[logistic_regression] labels must be in [0, 2), but range from 0 to 2");
  EXPECT_EQ(message(set.features, set.labels - 1, 3),
            "[logistic_regression] labels must be in [0, 3), but range from -1 to 1");
  EXPECT_EQ(message(set.features.slice(0, 0, 0), set.labels.slice(0, 0, 0), 3),
            "[logistic_regression] there are no samples to learn from");
  EXPECT_EQ(message(set.features, at::ones_like(set.labels), 3),
            "[logistic_regression] samples of at least two classes are needed, but all 12 are of class 1");
  for (const double bad : {kNaN, std::numeric_limits<double>::infinity()}) {
    auto features = set.features.clone();
    features[7][2] = bad;
    EXPECT_EQ(message(features, set.labels, 3),
              "[logistic_regression] the features of sample 7 hold a number that isn't finite");
  }
  LogisticRegression regression(set.features, set.labels, 3);
  for (const double bad : {0.0, -1.0, kNaN, std::numeric_limits<double>::infinity()}) {
    EXPECT_NE(test::message_of<ConfigError>([&] {
                regression.fit({.c = bad});
              }).find("[logistic_regression] c must be above 0, but is "),
              std::string::npos);
  }
  EXPECT_NE(test::message_of<ConfigError>([&] { regression.fit({.max_iterations = 0}); }).find("max_iterations"),
            std::string::npos);
  EXPECT_THROW(LogisticRegression(set.features.to(at::kHalf), set.labels, 3), c10::Error);
  EXPECT_THROW(LogisticRegression(set.features, set.labels.slice(0, 1), 3), c10::Error);
  const LinearClassifier other{at::zeros({3, 5}), at::zeros({3})};
  EXPECT_THROW(regression.fit({}, other), c10::Error);
}

}  // namespace
}  // namespace contrastive::eval
