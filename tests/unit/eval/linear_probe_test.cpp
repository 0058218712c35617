#include "contrastive/eval/linear_probe.h"

#include <cmath>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/eval/few_shot.h"

#include "tests/support/errors.h"
#include "tests/support/tensors.h"

namespace contrastive::eval {
namespace {

constexpr int64_t kClasses = 3;

/// Few samples in many dimensions: a penalty that is too weak or too strong costs accuracy.
LabelledFeatures samples(int64_t count, uint64_t seed) {
  const auto labels = at::arange(count) % kClasses;
  const auto centres = test::random_normal({kClasses, 12}, 100) * 0.8;
  return {test::random_normal({count, 12}, seed) + centres.index_select(0, labels), labels};
}

TrainingRows rows_of(const LabelledFeatures& set) {
  return {.features = set.features, .labels = set.labels};
}

/// Accuracy of a fit from zeros, counted here.
double accuracy_at(double c, const LabelledFeatures& train, const LabelledFeatures& validation) {
  const auto fit = LogisticRegression(train.features, train.labels, kClasses).fit({.c = c});
  const auto hits = fit.classifier.scores(validation.features).argmax(1).eq(validation.labels);
  return hits.to(at::kDouble).mean().item<double>();
}

TEST(LinearProbeTest, AFullSweepTriesNinetySevenValuesAndTakesTheBest) {
  const auto train = samples(40, 1), validation = samples(200, 2);
  int64_t points = 0;
  LinearProbeOptions options{.sweep = SweepMode::full};
  options.on_point = [&](const SweepPoint&) { ++points; };
  const auto found = sweep_c(rows_of(train), rows_of(validation), kClasses, options);
  EXPECT_EQ(points, 97);
  ASSERT_EQ(found.curve.size(), 97U);
  EXPECT_NEAR(found.curve.front().c, 1e-6, 1e-18);
  EXPECT_NEAR(found.curve[8].c, 1e-5, 1e-17);
  EXPECT_NEAR(found.curve.back().c, 1e6, 1e-6);
  const SweepPoint* best = nullptr;
  for (const auto& point : found.curve) {
    if (!best || point.validation_accuracy > best->validation_accuracy) best = &point;
  }
  EXPECT_EQ(found.c, best->c);
  EXPECT_LT(found.curve.front().validation_accuracy, best->validation_accuracy);
  for (const size_t i : {0U, 20U, 50U, 96U}) {
    const auto& point = found.curve[i];
    EXPECT_NEAR(point.validation_accuracy, accuracy_at(point.c, train, validation), 1.01 / 200) << point.c;
  }
}

TEST(LinearProbeTest, ABinarySweepHalvesTheIntervalAroundTheBest) {
  const auto train = samples(40, 1), validation = samples(200, 2);
  std::vector<double> exponents;
  LinearProbeOptions options;
  options.on_point = [&](const SweepPoint& point) { exponents.push_back(std::log10(point.c)); };
  const auto found = sweep_c(rows_of(train), rows_of(validation), kClasses, options);
  ASSERT_GE(exponents.size(), 11U);
  ASSERT_LE(exponents.size(), 15U);
  for (size_t i = 0; i < 7; ++i) EXPECT_NEAR(exponents[i], -6 + 2.0 * static_cast<double>(i), 1e-9);
  EXPECT_NEAR(std::abs(exponents[7] - exponents[8]), 2.0, 1e-9);  // a decade to either side
  EXPECT_NEAR(std::abs(exponents[exponents.size() - 2] - exponents.back()), 0.25, 1e-9);
  for (const auto& point : found.curve) {
    const auto full = accuracy_at(found.c, train, validation);
    EXPECT_LE(point.validation_accuracy, full + 1.01 / 200);
  }
}

TEST(LinearProbeTest, OfEquallyGoodValuesTheStrongestPenaltyIsTaken) {
  const auto features = at::cat({at::eye(3), at::eye(3) * 2}) * 5;
  const auto labels = at::arange(6) % 3;  // solved at any c
  for (const auto mode : {SweepMode::binary, SweepMode::full}) {
    LinearProbeOptions options{.sweep = mode};
    options.regression.objective_tolerance = 1e-7;
    options.regression.tolerance = 1e-5;
    const TrainingRows set{.features = features, .labels = labels};
    EXPECT_NEAR(sweep_c(set, set, 3, options).c, 1e-6, 1e-18);
  }
}

TEST(LinearProbeTest, FitsTrainingAndValidationSamplesTogetherAfterTheSweep) {
  const auto train = samples(60, 1), validation = samples(45, 2), test = samples(300, 3);
  const auto found = linear_probe(train, validation, test, kClasses, {});
  const LabelledFeatures both{at::cat({train.features, validation.features}),
                              at::cat({train.labels, validation.labels})};
  const auto expected = LogisticRegression(both.features, both.labels, kClasses).fit({.c = found.c});
  EXPECT_NEAR(found.fit.objective, expected.objective, 1e-4 * expected.objective);
  EXPECT_NEAR(found.test.top1_accuracy, accuracy_at(found.c, both, test), 1.01 / 300);
  EXPECT_EQ(found.test.num_samples, 300);
  EXPECT_EQ(found.test.top5_accuracy, 1);
  EXPECT_NEAR(found.test.mean_per_class_recall, found.test.top1_accuracy, 1e-9);  // equally many of each

  const auto again = linear_probe(train, validation, test, kClasses, {});
  EXPECT_TRUE(test::same_bytes(found.fit.classifier.weights, again.fit.classifier.weights));
}

TEST(LinearProbeTest, HoldsOutAShareOfEveryClassWhereThereIsNoValidationSet) {
  const auto labels = at::cat({at::zeros({50}, at::kLong), at::ones({10}, at::kLong), at::full({1}, 2, at::kLong)});
  const auto split = hold_out(labels, 4, 0.2, 7);
  EXPECT_EQ(split.held_out.size(0), 12);
  const auto counts = labels.index_select(0, split.held_out).bincount({}, 4);
  EXPECT_TRUE(at::equal(counts, test::indices({10, 2, 0, 0})));
  EXPECT_TRUE(at::equal(std::get<0>(at::cat({split.kept, split.held_out}).sort()), at::arange(61)));
  EXPECT_TRUE(at::equal(hold_out(labels, 4, 0.2, 7).held_out, split.held_out));
  EXPECT_FALSE(at::equal(hold_out(labels, 4, 0.2, 8).held_out, split.held_out));

  const auto train = samples(100, 1), test = samples(100, 3);
  const auto found = linear_probe(train, std::nullopt, test, kClasses, {});
  EXPECT_FALSE(found.curve.empty());
  EXPECT_NEAR(found.test.top1_accuracy, accuracy_at(found.c, train, test), 1.01 / 100);
}

TEST(LinearProbeTest, AFixedValueNeedsNoSweep) {
  const auto train = samples(60, 1), test = samples(100, 3);
  LinearProbeOptions options{.sweep = SweepMode::none};
  options.regression.c = 0.5;
  const auto found = linear_probe(train, std::nullopt, test, kClasses, options);
  EXPECT_EQ(found.c, 0.5);
  EXPECT_TRUE(found.curve.empty());
  EXPECT_NEAR(found.test.top1_accuracy, accuracy_at(0.5, train, test), 1e-12);
}

TEST(FewShotProbeTest, LearnsFromTheDrawnSamplesOnly) {
  const auto train = samples(90, 1), test = samples(200, 3);
  const FewShotProbeOptions options{.shots = {1, 4, 64}, .seeds = 3};
  const auto found = probe_few_shot(train, test, kClasses, options);
  ASSERT_EQ(found.size(), 3U);
  for (const auto& metrics : found) {
    ASSERT_EQ(metrics.draws.size(), 3U);
    double sum = 0, squares = 0;
    for (int64_t seed = 0; seed < 3; ++seed) {
      const auto rows = draw_shots(train.labels, kClasses, metrics.shots, seed);
      const LabelledFeatures drawn{train.features.index_select(0, rows), train.labels.index_select(0, rows)};
      const double expected = accuracy_at(options.probe.regression.c, drawn, test);
      EXPECT_NEAR(metrics.draws[static_cast<size_t>(seed)].top1_accuracy, expected, 1e-12);
      sum += expected;
      squares += expected * expected;
    }
    EXPECT_NEAR(metrics.mean_top1(), sum / 3, 1e-12);
    EXPECT_NEAR(metrics.top1_deviation(), std::sqrt(std::max(0.0, (squares - sum * sum / 3) / 2)), 1e-7);
  }
  EXPECT_EQ(found[2].top1_deviation(), 0) << "all samples are taken, whatever the seed";
  EXPECT_EQ(probe_few_shot(train, test, kClasses, {.shots = {2}, .seeds = 1})[0].top1_deviation(), 0);
}

TEST(FewShotProbeTest, ASweepChoosesByFurtherSamplesThatAreNotLearnedFrom) {
  const auto train = samples(90, 1), test = samples(200, 3);
  FewShotProbeOptions options{.shots = {8}, .seeds = 2};
  options.probe.sweep = SweepMode::binary;
  const auto found = probe_few_shot(train, test, kClasses, options);
  for (int64_t seed = 0; seed < 2; ++seed) {
    const auto rows = draw_shots(train.labels, kClasses, 8, seed);
    const LabelledFeatures drawn{train.features.index_select(0, rows), train.labels.index_select(0, rows)};
    const auto i = static_cast<size_t>(seed);
    EXPECT_NEAR(found[0].draws[i].top1_accuracy, accuracy_at(found[0].c[i], drawn, test), 1.01 / 200);
  }
}

TEST(LinearProbeTest, RefusesWhatCannotBeProbed) {
  const auto train = samples(30, 1);
  const LabelledFeatures none{at::empty({0, 12}), at::empty({0}, at::kLong)};
  const auto message = [&](const LabelledFeatures& validation, const LabelledFeatures& test, int64_t classes) {
    return test::message_of<DataError>([&] { linear_probe(train, validation, test, classes, {}); });
  };
  EXPECT_EQ(message(none, train, kClasses), "[linear_probe] there are no validation samples to choose c by");
  EXPECT_EQ(message(train, none, kClasses), "[linear_probe] there are no test samples");
  EXPECT_EQ(message(train, train, 2), "[linear_probe] labels must be in [0, 2), but range from 0 to 2");
  LinearProbeOptions options;
  options.held_out_share = 1;
  EXPECT_EQ(test::message_of<ConfigError>([&] { linear_probe(train, std::nullopt, train, kClasses, options); }),
            "[linear_probe] held_out_share must be above 0 and below 1, but is 1");
  EXPECT_EQ(test::message_of<ConfigError>([&] { probe_few_shot(train, train, kClasses, {.shots = {0}}); }),
            "[few_shot] shots must be numbers of at least 1, and seeds at least 1");
}

}  // namespace
}  // namespace contrastive::eval
