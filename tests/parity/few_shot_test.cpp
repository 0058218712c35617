// Against big_vision's fewshot_lsr and its formula in fp64; every size, shot and seed comes from the files.

#include "contrastive/eval/few_shot.h"

#include <filesystem>
#include <fstream>
#include <string>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/safetensors.h"

#include "tests/support/paths.h"
#include "tests/support/tensors.h"

namespace contrastive::eval {
namespace {

TEST(FewShotParityTest, WeightsScoresAndAccuracyAreThoseOfTheReference) {
  const auto folder = test::lit_fixtures_dir();
  if (!folder) GTEST_SKIP() << "no LiT fixtures here; set CONTRASTIVE_FIXTURES_LIT";
  const auto settings = nlohmann::json::parse(std::ifstream(*folder / "config.json")).at("cases").at("fewshot_lsr");
  const SafetensorsFile file(*folder / settings.at("expected").get<std::string>());
  const int64_t num_classes = settings.at("num_classes");
  const double l2_reg = settings.at("l2_reg");
  const auto train_x = file.tensor("train_x"), test_x = file.tensor("test_x");
  const auto train_y = file.tensor("train_y").to(at::kLong), test_y = file.tensor("test_y").to(at::kLong);
  int cases = 0;
  for (const auto& item : settings.at("results").items()) {
    SCOPED_TRACE(item.key());
    const auto expected = [&](const char* name) { return file.tensor(item.key() + "/" + name); };
    const auto rows = expected("indices").to(at::kLong);
    const LinearRegression regression(train_x.index_select(0, rows), train_y.index_select(0, rows), num_classes,
                                      l2_reg);
    EXPECT_TRUE(test::tensors_near("weights", regression.weights(), expected("weights_f64"), {1e-9, 1e-9}));
    EXPECT_TRUE(test::tensors_near("weights, fp32", regression.weights(), expected("weights_f32"), {2e-5, 2e-5}));
    const auto scores = regression.scores(test_x);
    EXPECT_TRUE(test::tensors_near("scores", scores, expected("scores_f64"), {1e-9, 1e-9}));
    const double one_item = 1.0 / static_cast<double>(test_y.size(0));
    EXPECT_NEAR(top1_share(scores, test_y), expected("accuracy").item<float>(), one_item + 1e-6);
    EXPECT_NEAR(top1_share(scores, test_y), item.value().at("accuracy_f64").get<double>(), 1e-12);
    ++cases;
  }
  EXPECT_GT(cases, 0);
}

}  // namespace
}  // namespace contrastive::eval
