// Against scikit-learn's LogisticRegression; every size comes from the files.

#include "contrastive/eval/linear_probe.h"

#include <filesystem>
#include <fstream>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/safetensors.h"

#include "tests/support/paths.h"
#include "tests/support/tensors.h"

namespace contrastive::eval {
namespace {

TEST(LinearProbeParityTest, SolutionAndAccuracyAreThoseOfScikitLearn) {
  const auto fixtures = test::fixtures_dir();
  if (!fixtures) GTEST_SKIP() << "no parity fixtures here; set CONTRASTIVE_FIXTURES";
  const auto folder = *fixtures / "zeroshot";
  const auto expected = nlohmann::json::parse(std::ifstream(folder / "linear_probe.json"));
  const SafetensorsFile file(folder / "linear_probe.safetensors");
  const LabelledFeatures train{file.tensor("train_x"), file.tensor("train_y")};
  const LabelledFeatures test{file.tensor("test_x"), file.tensor("test_y")};
  const auto num_classes = file.tensor("coef").size(0);
  const double one_sample = 1.0 / static_cast<double>(test.labels.size(0)) + 1e-9;
  LinearProbeOptions options;
  options.regression.c = expected.at("C");
  options.regression.max_iterations = expected.at("max_iter");
  options.sweep = SweepMode::none;

  const auto found = linear_probe(train, std::nullopt, test, num_classes, options);
  EXPECT_TRUE(found.fit.converged);
  const double tight_objective = expected.at("tight_objective");
  EXPECT_NEAR(found.fit.objective, tight_objective, 1e-5 * tight_objective);
  EXPECT_NEAR(found.fit.objective, expected.at("objective").get<double>(), 1e-4 * tight_objective);
  EXPECT_NEAR(found.test.top1_accuracy, expected.at("accuracy").get<double>(), one_sample);
  EXPECT_NEAR(found.test.top1_accuracy, expected.at("tight_accuracy").get<double>(), one_sample);
  const TrainingRows learned_from{.features = train.features, .labels = train.labels};
  EXPECT_NEAR(evaluate_classifier(found.fit.classifier, learned_from).top1_accuracy,
              expected.at("train_accuracy").get<double>(), 1.0 / static_cast<double>(train.labels.size(0)) + 1e-9);

  options.regression.tolerance = 1e-6;
  options.regression.objective_tolerance = 1e-7;
  const auto tight = linear_probe(train, std::nullopt, test, num_classes, options);
  const test::Tolerance tolerance{1e-3, 0};
  EXPECT_TRUE(
      test::tensors_near("coef", tight.fit.classifier.weights.to(at::kDouble), file.tensor("tight.coef"), tolerance));
  EXPECT_TRUE(test::tensors_near("intercept", tight.fit.classifier.bias.to(at::kDouble), file.tensor("tight.intercept"),
                                 tolerance));
}

}  // namespace
}  // namespace contrastive::eval
