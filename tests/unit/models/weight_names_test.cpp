#include "contrastive/models/weight_names.h"

#include <algorithm>
#include <map>
#include <string>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/models/clip_model.h"
#include "contrastive/models/hf_config.h"

#include "tests/support/errors.h"
#include "tests/support/tensors.h"

namespace contrastive::models {
namespace {

ModelConfig tiny() {
  ModelConfig config;
  config.embed_dim = 6;
  config.vision_cfg = {.layers = {1}, .width = 8, .head_width = 4, .patch_size = 4, .image_size = 8};
  config.text_cfg = {.context_length = 5, .vocab_size = 11, .width = 12, .heads = 3, .layers = 1};
  return config;
}

NamedTensors state_of(const ModelConfig& config) {
  ClipModel model(config);
  model->reset_parameters(at::make_generator<at::CPUGeneratorImpl>(uint64_t{9}));
  return model->state();
}

std::map<std::string, LazyTensor> by_name(const std::vector<LazyTensor>& tensors) {
  std::map<std::string, LazyTensor> result;
  for (const auto& tensor : tensors) result.emplace(tensor.name, tensor);
  return result;
}

TEST(WeightNamesTest, ToTransformersAndBackGivesTheSameBits) {
  const auto state = state_of(tiny());
  const auto hf = to_hf_clip_names(lazy(state), tiny());
  EXPECT_EQ(detect_layout(hf), WeightLayout::hf_clip);
  const auto back = by_name(to_open_clip_names(hf, WeightLayout::hf_clip, /*custom_text=*/false));
  ASSERT_EQ(back.size(), state.size());
  for (const auto& [name, tensor] : state) {
    ASSERT_TRUE(back.contains(name)) << name;
    EXPECT_EQ(back.at(name).shape, tensor.sizes().vec()) << name;
    EXPECT_TRUE(test::tensors_equal(name, back.at(name).load(), tensor));
  }
}

TEST(WeightNamesTest, TextPrefixFollowsTheConfigWhateverTheFileHas) {
  const auto state = lazy(state_of(tiny()));
  const auto prefixed = to_open_clip_names(state, WeightLayout::open_clip, /*custom_text=*/true);
  const auto names = by_name(prefixed);
  EXPECT_TRUE(names.contains("text.token_embedding.weight"));
  EXPECT_TRUE(names.contains("logit_scale"));
  EXPECT_TRUE(names.contains("visual.proj"));
  const auto plain = by_name(to_open_clip_names(prefixed, WeightLayout::open_clip, /*custom_text=*/false));
  for (const auto& tensor : state) EXPECT_TRUE(plain.contains(tensor.name)) << tensor.name;
}

TEST(WeightNamesTest, WrapperPrefixesGoOnlyIfAllNamesHaveThem) {
  const auto names_after = [](const std::vector<std::string>& names) {
    std::vector<LazyTensor> tensors;
    for (const auto& name : names) tensors.push_back({name, at::kFloat, {}, {}});
    std::vector<std::string> result;
    for (const auto& tensor : strip_wrapper_prefix(tensors)) result.push_back(tensor.name);
    return result;
  };
  EXPECT_EQ(names_after({"module._orig_mod.a", "module._orig_mod.b"}), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(names_after({"module.a", "b"}), (std::vector<std::string>{"module.a", "b"}));
  EXPECT_EQ(names_after({}), std::vector<std::string>{});
}

TEST(WeightNamesTest, BuffersThatAreNoWeightsAreLeftOut) {
  auto tensors = lazy({{"visual.proj", at::ones({2, 2})},
                       {"input_resolution", at::full({}, 224)},
                       {"text_model.embeddings.position_ids", at::arange(5)}});
  EXPECT_EQ(to_open_clip_names(tensors, WeightLayout::openai, false).size(), 1U);
}

TEST(WeightNamesTest, AnIncompleteOrUnequalTripleIsAnError) {
  const auto tensor = [](const std::string& name, int64_t rows) {
    return std::pair("vision_model.encoder.layers.0.self_attn." + name + "_proj.weight", at::ones({rows, 4}));
  };
  const auto convert = [](const NamedTensors& tensors) {
    to_open_clip_names(lazy(tensors), WeightLayout::hf_clip, false);
  };
  EXPECT_NE(test::message_of([&] {
              convert({tensor("q", 4), tensor("v", 4)});
            }).find("has not all three of q, k and v"),
            std::string::npos);
  EXPECT_NE(test::message_of([&] {
              convert({tensor("q", 4), tensor("k", 3), tensor("v", 4)});
            }).find("differ in shape"),
            std::string::npos);
}

TEST(WeightNamesTest, ForeignNamesAreShownInTheError) {
  const auto message = test::message_of([] { detect_layout(lazy({{"encoder.weight", at::ones({1})}})); });
  EXPECT_NE(message.find("1 tensors with names that are not open_clip's"), std::string::npos) << message;
  EXPECT_NE(message.find("encoder.weight"), std::string::npos) << message;
}

TEST(WeightNamesTest, ModelsThatAFormatCantHoldAreRefusedByReason) {
  const auto state = lazy(state_of(tiny()));
  EXPECT_NE(
      test::message_of([&] { to_openai_weights(state, tiny()); }).find("the exact GELU (it always computes QuickGELU)"),
      std::string::npos);
  EXPECT_NE(test::message_of([&] { to_openai_weights(state, tiny()); }).find("image heads of width 4 (always 64)"),
            std::string::npos);
  auto config = tiny();
  config.vision_cfg.no_ln_pre = true;
  EXPECT_EQ(test::message_of([&] { to_hf_clip_names(state, config); }),
            "[convert] transformers' CLIPModel can't hold CLIPA's image tower");
}

TEST(WeightNamesTest, OpenAisDtypesAreKnownAgain) {
  ModelConfig config;
  config.embed_dim = 32;
  config.quick_gelu = true;
  config.vision_cfg = {.layers = {1, 1, 1, 1}, .width = 4, .head_width = 64, .image_size = 32};
  config.text_cfg = {.context_length = 5, .vocab_size = 11, .width = 64, .heads = 1, .layers = 1};
  const auto state = lazy(state_of(config));
  EXPECT_FALSE(has_openai_dtypes(state));
  const auto written = to_openai_weights(state, config);
  EXPECT_TRUE(has_openai_dtypes(written));
  const auto names = by_name(written);
  EXPECT_EQ(names.at("visual.bn1.weight").dtype, at::kFloat);
  EXPECT_EQ(names.at("visual.layer1.0.downsample.1.running_mean").dtype, at::kFloat);
  EXPECT_EQ(names.at("visual.layer1.0.downsample.0.weight").dtype, at::kHalf);
  EXPECT_EQ(names.at("visual.attnpool.positional_embedding").dtype, at::kFloat);
  EXPECT_EQ(names.at("visual.attnpool.k_proj.bias").dtype, at::kHalf);
  EXPECT_EQ(names.at("visual.bn1.num_batches_tracked").dtype, at::kLong);
  EXPECT_EQ(infer_openai_config(written), config);
}

TEST(WeightNamesTest, WeightsThatTellNoModelSayWhatIsMissing) {
  const auto message = test::message_of([] { infer_openai_config(lazy({{"visual.proj", at::ones({2, 2})}})); });
  EXPECT_NE(message.find("there is no text_projection"), std::string::npos) << message;
}

TEST(HfConfigTest, WritesWhatItReads) {
  auto config = tiny();
  for (const bool quick_gelu : {false, true}) {
    config.quick_gelu = quick_gelu;
    const auto node = parse_config(to_json(to_hf_config(config)), "config.json");
    EXPECT_EQ(model_config_from_hf(node), config);
  }
}

TEST(HfConfigTest, EveryHiddenSizeGivesARatioThatGivesItBack) {
  for (int64_t width = 1; width < 300; ++width) {
    for (int64_t hidden = width; hidden < 6 * width; hidden += 1 + width / 7) {
      auto node = parse_config("{model_type: clip, vision_config: {hidden_size: " + std::to_string(width) +
                                   ", num_attention_heads: 1, intermediate_size: " + std::to_string(hidden) + "}}",
                               "test");
      const double ratio = model_config_from_hf(node).vision_cfg.mlp_ratio;
      ASSERT_EQ(static_cast<int64_t>(static_cast<double>(width) * ratio), hidden) << width;
    }
  }
}

TEST(HfConfigTest, OtherModelsAndActivationsAreErrorsThatNameThem) {
  const auto read = [](const std::string& json) {
    return test::message_of([&] { model_config_from_hf(parse_config(json, "config.json")); });
  };
  EXPECT_NE(read("{model_type: bert}").find("model_type: expected clip or siglip, found 'bert'"), std::string::npos);
  EXPECT_NE(read("{model_type: clip, text_config: {hidden_act: relu}}").find("text_config.hidden_act: expected"),
            std::string::npos);
  EXPECT_NE(read("{model_type: clip, text_config: {hidden_act: gelu}}").find("only one of the towers has quick_gelu"),
            std::string::npos);
  EXPECT_NE(read("{model_type: clip, vision_config: {num_channels: 4}}").find("num_channels: expected 3"),
            std::string::npos);
  EXPECT_NE(read("{model_type: clip, vision_config: {hidden_size: wide}}").find("hidden_size: expected a number"),
            std::string::npos);
}

}  // namespace
}  // namespace contrastive::models
