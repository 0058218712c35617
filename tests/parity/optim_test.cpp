#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <optional>
#include <string>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "contrastive/core/config_node.h"
#include "contrastive/core/safetensors.h"
#include "contrastive/optim/adamw.h"
#include "contrastive/optim/gradients.h"
#include "contrastive/optim/schedule.h"

#include "tests/support/paths.h"
#include "tests/support/tensors.h"

namespace contrastive {
namespace {

class OptimParityTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!test::fixtures_dir()) GTEST_SKIP() << "no parity fixtures (CONTRASTIVE_FIXTURES)";
  }
  static std::filesystem::path folder() { return *test::fixtures_dir() / "optim"; }
};

double number_or(const ConfigNode& map, const std::string& key, double standard) {
  return map.find(key) == nullptr ? standard : test::number_at(map, key);
}

optim::Schedule schedule_of(const ConfigNode& row) {
  static const std::map<std::string, std::string> kNames = {
      {"cosine", "cosine"}, {"const", "constant"}, {"const-cooldown", "constant_cooldown"}};
  return {{.schedule = kNames.at(row.find("schedule")->scalar),
           .warmup_steps = static_cast<int64_t>(test::number_at(row, "warmup")),
           .cooldown_steps = static_cast<int64_t>(number_or(row, "cooldown_steps", 0)),
           .cooldown_power = number_or(row, "cooldown_power", 1.0),
           .cooldown_end_lr = number_or(row, "cooldown_end_lr", 0.0)},
          test::number_at(row, "base_lr"),
          static_cast<int64_t>(test::number_at(row, "steps"))};
}

TEST_F(OptimParityTest, SchedulesEqualTheReferenceAtEveryStep) {
  std::ifstream file(folder() / "schedules.jsonl");
  int rows = 0;
  for (std::string line; std::getline(file, line); ++rows) {
    const auto row = parse_config(line, "schedules.jsonl");
    const auto schedule = schedule_of(row);
    const auto expected = test::numbers_at(row, "lr");
    for (size_t step = 0; step < expected.size(); ++step) {
      EXPECT_NEAR(schedule.at(static_cast<int64_t>(step)), expected[step], 1e-12 * std::abs(expected[step]))
          << "row " << rows << " step " << step;
    }
  }
  EXPECT_GT(rows, 0);
}

/// Parameters with the values of a group of tensors.
NamedTensors leaves(const std::map<std::string, torch::Tensor>& values, torch::ScalarType dtype) {
  NamedTensors parameters;
  for (const auto& [name, value] : values) parameters.emplace_back(name, value.to(dtype).clone().requires_grad_());
  return parameters;
}

void run_adamw(const SafetensorsFile& file, const std::string& prefix, torch::ScalarType dtype, double tolerance) {
  const auto meta = test::meta_of(file);
  const auto decayed = test::strings_at(meta, "decayed");
  const auto betas = test::numbers_at(meta, "betas");
  const auto lrs = test::numbers_at(meta, "lrs");
  const auto parameters = leaves(test::by_name(file.tensors(), "start."), dtype);
  optim::AdamW optimizer(parameters,
                         {.beta1 = betas[0],
                          .beta2 = betas[1],
                          .eps = test::number_at(meta, "eps"),
                          .weight_decay = test::number_at(meta, "weight_decay")},
                         [&](const std::string& name, const torch::Tensor&) {
                           return std::find(decayed.begin(), decayed.end(), name) != decayed.end();
                         });
  for (size_t step = 0; step < lrs.size(); ++step) {
    const auto number = "step" + std::to_string(step + 1) + ".";
    for (const auto& [name, parameter] : parameters) {
      auto leaf = parameter;
      leaf.mutable_grad() = file.tensor("grad." + number + name).to(dtype).clone();
    }
    optimizer.step(lrs[step]);
    for (const auto& [name, parameter] : parameters) {
      const auto key = prefix + number + name;
      EXPECT_TRUE(test::tensors_near(key, parameter, file.tensor(key), {tolerance, tolerance}));
    }
  }
  const auto state = test::by_name(optimizer.state());
  for (const auto& kind : {"exp_avg.", "exp_avg_sq."}) {
    for (const auto& [name, parameter] : parameters) {
      const auto key = kind + name;
      EXPECT_TRUE(test::tensors_near(key, state.at(key), file.tensor(prefix + key), {tolerance, tolerance}));
    }
  }
}

TEST_F(OptimParityTest, AdamWEqualsTheReferenceInSinglePrecision) {
  run_adamw(SafetensorsFile(folder() / "adamw.safetensors"), "f32.", at::kFloat, 1e-6);
}

TEST_F(OptimParityTest, AdamWEqualsTheReferenceInDoublePrecision) {
  run_adamw(SafetensorsFile(folder() / "adamw.safetensors"), "f64.", at::kDouble, 1e-12);
}

TEST_F(OptimParityTest, GradientNormsAndClippedGradientsEqualTheReference) {
  const SafetensorsFile file(folder() / "clip_grad_norm.safetensors");
  const auto meta = test::meta_of(file);
  const auto& cases = *meta.find("cases");
  for (const auto& entry : cases.entries) {
    const auto parameters = leaves(test::by_name(file.tensors(), entry.key + ".before."), at::kFloat);
    for (const auto& [name, parameter] : parameters) {
      auto leaf = parameter;
      leaf.mutable_grad() = parameter.detach().clone();
    }
    const auto norm = optim::global_norm(parameters);
    const auto expected_norm = at::scalar_tensor(test::number_at(entry.value, "total_norm"), at::kDouble);
    EXPECT_TRUE(test::tensors_near(entry.key + ".total_norm", norm, expected_norm, {0, 1e-6}));
    const auto divisor = optim::clip_divisor(norm, test::number_at(entry.value, "max_norm"));
    for (const auto& [name, parameter] : parameters) {
      const auto key = entry.key + ".after." + name;
      EXPECT_TRUE(test::tensors_near(key, parameter.grad() / divisor, file.tensor(key), {0, 1e-6}));
    }
  }
}

}  // namespace
}  // namespace contrastive
