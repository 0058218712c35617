#include "contrastive/core/torch_file.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/file.h"
#include "contrastive/core/safetensors.h"

#include "tests/support/paths.h"

namespace contrastive {
namespace {

using Json = nlohmann::ordered_json;
using Kind = TorchValue::Kind;

class TorchFileParityTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto fixtures = test::fixtures_dir();
    if (!fixtures.has_value()) GTEST_SKIP() << "no parity fixtures";
    folder_ = *fixtures / "openai";
    if (!std::filesystem::exists(folder_)) GTEST_SKIP() << folder_ << " does not exist";
  }

  Json json(const std::string& name) const { return Json::parse(read_text_file(folder_ / name)); }

  std::filesystem::path folder_;
};

at::ScalarType dtype_of(const std::string& name) {
  static const std::map<std::string, at::ScalarType> kDtypes{
      {"float32", at::kFloat}, {"float16", at::kHalf}, {"int64", at::kLong}, {"bfloat16", at::kBFloat16}};
  return kDtypes.at(name);
}

std::map<std::string, at::Tensor> by_name(const NamedTensors& tensors) {
  return {tensors.begin(), tensors.end()};
}

TEST_F(TorchFileParityTest, AnOpenAiArchiveHasTheListedNamesAndDtypesInOrder) {
  const TorchFile file(folder_ / "model_jit.pt");
  EXPECT_TRUE(file.is_torchscript());
  const auto state = file.state_dict();
  const auto expected = json("dtypes.json");
  ASSERT_EQ(state.size(), expected.size());
  size_t i = 0;
  for (const auto& [name, dtype] : expected.items()) {
    EXPECT_EQ(state[i].first, name);
    EXPECT_EQ(state[i].second.scalar_type(), dtype_of(dtype.get<std::string>())) << name;
    ++i;
  }
  const auto tensors = by_name(state);
  const auto config = json("expected_config.json");
  for (const auto* name : {"input_resolution", "context_length", "vocab_size"}) {
    ASSERT_TRUE(tensors.contains(name));
    EXPECT_EQ(tensors.at(name).dim(), 0) << name;
  }
  EXPECT_EQ(tensors.at("vocab_size").item<int64_t>(), tensors.at("token_embedding.weight").size(0));
  EXPECT_EQ(tensors.at("context_length").item<int64_t>(), tensors.at("positional_embedding").size(0));
  EXPECT_EQ(tensors.at("input_resolution").item<int64_t>(), config["vision_cfg"]["image_size"].get<int64_t>());
}

TEST_F(TorchFileParityTest, AnArchiveAndItsStateDictHoldTheSameTensors) {
  const auto archive = TorchFile(folder_ / "model_jit.pt").state_dict();
  const TorchFile plain_file(folder_ / "model_state.pt");
  EXPECT_FALSE(plain_file.is_torchscript());
  const auto plain = plain_file.state_dict();
  ASSERT_EQ(archive.size(), plain.size());
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_EQ(archive[i].first, plain[i].first);
    EXPECT_EQ(archive[i].second.scalar_type(), plain[i].second.scalar_type());
    EXPECT_TRUE(at::equal(archive[i].second, plain[i].second)) << plain[i].first;
  }
}

TEST_F(TorchFileParityTest, ATrainingCheckpointShowsItsParts) {
  const auto path = test::only_file(folder_, "epoch_", ".pt");
  const auto stem = path.stem().string();
  const TorchFile file(path);
  EXPECT_EQ("epoch_" + std::to_string(file.root().find("epoch")->as_int()), stem);
  EXPECT_TRUE(file.root().find("name")->is(Kind::kString));
  const auto state = by_name(file.state_dict());
  // The names and shapes of the same model two steps later.
  const SafetensorsFile io(folder_ / (stem + "_io.safetensors"));
  const std::string prefix = "resume.final.";
  size_t compared = 0;
  for (const auto& name : io.names()) {
    if (!name.starts_with(prefix)) continue;
    const auto& tensor = state.at("module." + name.substr(prefix.size()));
    EXPECT_EQ(tensor.sizes(), io.tensor(name).sizes()) << name;
    ++compared;
  }
  EXPECT_GT(compared, 0u);

  // Every parameter has a step and two moments of its own shape.
  const auto& optimizer = *file.root().find("optimizer");
  const auto moments = by_name(file.tensors(*optimizer.find("state")));
  size_t parameters = 0;
  for (const auto& group : optimizer.find("param_groups")->items()) {
    for (const auto& index : group.find("params")->items()) {
      const auto key = std::to_string(index.as_int());
      EXPECT_EQ(moments.at(key + ".step").dim(), 0);
      EXPECT_EQ(moments.at(key + ".exp_avg").sizes(), moments.at(key + ".exp_avg_sq").sizes());
      ++parameters;
    }
    EXPECT_EQ(group.find("betas")->items().size(), 2u);
  }
  EXPECT_EQ(moments.size(), 3 * parameters);
}

}  // namespace
}  // namespace contrastive
