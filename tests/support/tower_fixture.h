#pragma once

#include <map>
#include <set>
#include <string>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include "contrastive/core/safetensors.h"
#include "contrastive/models/tower.h"

#include "tests/support/paths.h"
#include "tests/support/tensors.h"

namespace contrastive::test {

/// A tower of tests/fixtures/towers: weights by their published names, an input, and the reference's results in fp64.
class TowerFixture {
 public:
  explicit TowerFixture(const std::string& name)
      : tensors_(by_name(SafetensorsFile(own_fixtures_dir() / "towers" / (name + ".safetensors")).tensors())) {}

  const torch::Tensor& at(const std::string& name) const { return tensors_.at(name); }

  /// Those whose name starts with the prefix, without it.
  std::map<std::string, torch::Tensor> below(const std::string& prefix) const {
    std::map<std::string, torch::Tensor> found;
    for (const auto& [name, tensor] : tensors_) {
      if (name.starts_with(prefix)) found.emplace(name.substr(prefix.size()), tensor);
    }
    return found;
  }

  /// Fills a tower, whose tensors must have exactly the published names, and turns it to `dtype`.
  void load(models::TowerImpl& tower, torch::ScalarType dtype) const {
    const at::NoGradGuard no_grad;
    auto weights = below("weights/");
    for (auto& item : tower.named_parameters()) {
      const auto name = tower.checkpoint_name(item.key());
      ASSERT_TRUE(weights.contains(name)) << name;
      ASSERT_EQ(item.value().sizes(), weights.at(name).sizes()) << name;
      item.value().copy_(weights.at(name));
      weights.erase(name);
    }
    EXPECT_TRUE(weights.empty()) << weights.begin()->first;
    tower.to(dtype);
  }

  /// Compares features and the gradient that the reference has for them, of every parameter.
  void expect_results(models::TowerImpl& tower, const torch::Tensor& features, Tolerance of_features,
                      Tolerance of_gradients) const {
    EXPECT_TRUE(tensors_near("features", features, at("features"), of_features));
    (features * at("direction").to(features.scalar_type())).sum().backward();
    for (const auto& item : tower.named_parameters()) {
      const auto name = tower.checkpoint_name(item.key());
      const auto gradient = item.value().grad().defined() ? item.value().grad() : at::zeros_like(item.value());
      EXPECT_TRUE(tensors_near(name, gradient, at("gradient/" + name), of_gradients));
    }
  }

 private:
  std::map<std::string, torch::Tensor> tensors_;
};

/// Every tensor of a tower belongs to a layer group in [0, num_layer_groups()) or to the head, and no group is empty.
inline void expect_all_in_layer_groups(models::TowerImpl& tower) {
  std::set<int64_t> groups;
  for (const auto& item : tower.named_parameters()) groups.insert(tower.layer_group(item.key()));
  std::set<int64_t> expected;
  if (tower.has_head()) expected.insert(models::kHeadGroup);
  for (int64_t i = 0; i < tower.num_layer_groups(); ++i) expected.insert(i);
  EXPECT_EQ(groups, expected);
}

}  // namespace contrastive::test
