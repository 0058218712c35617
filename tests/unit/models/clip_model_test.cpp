#include "contrastive/models/clip_model.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/models/precision.h"

#include "tests/support/tensors.h"

namespace contrastive::models {
namespace {

ModelConfig small() {
  ModelConfig config;
  config.embed_dim = 24;
  config.vision_cfg = {.layers = {2}, .width = 32, .head_width = 16, .patch_size = 8, .image_size = 32};
  config.text_cfg = {.context_length = 12, .vocab_size = 100, .width = 32, .heads = 2, .layers = 2};
  return config;
}

ModelConfig small_resnet() {
  auto config = small();
  config.vision_cfg = {.layers = {1, 1, 1, 1}, .width = 8, .head_width = 32, .image_size = 64};
  return config;
}

ClipModel model(const ModelConfig& config, uint64_t seed = 1) {
  ClipModel result(config);
  result->reset_parameters(at::detail::createCPUGenerator(seed));
  return result;
}

torch::Tensor some_tokens(int64_t rows) {
  auto tokens = at::zeros({rows, 12}, at::kLong);
  for (int64_t i = 0; i < rows; ++i) tokens[i].narrow(0, 0, 4).copy_(test::indices({98, 1 + i, 5, 99}));
  return tokens;
}

ModelConfig vit_b32() {
  ModelConfig config;
  config.vision_cfg.patch_size = 32;
  return config;
}

ModelConfig rn50() {
  ModelConfig config;
  config.embed_dim = 1024;
  config.vision_cfg = {.layers = {3, 4, 6, 3}, .width = 64};
  return config;
}

std::string load_error(ClipModel& target, const NamedTensors& tensors) {
  try {
    target->load_state(tensors);
  } catch (const CheckpointError& error) {
    return error.what();
  }
  return "";
}

TEST(ClipModelTest, StateOfViTB32HasThe302TensorsOfTheReleasedFile) {
  const auto state = test::by_name(ClipModel(vit_b32(), at::kMeta)->state());
  EXPECT_EQ(state.size(), 302U);
  const auto shape = [&](const std::string& name) { return state.at(name).sizes().vec(); };
  using Shape = std::vector<int64_t>;
  EXPECT_EQ(shape("positional_embedding"), (Shape{77, 512}));
  EXPECT_EQ(shape("text_projection"), (Shape{512, 512}));
  EXPECT_EQ(shape("logit_scale"), Shape{});
  EXPECT_EQ(shape("visual.class_embedding"), Shape{768});
  EXPECT_EQ(shape("visual.positional_embedding"), (Shape{50, 768}));
  EXPECT_EQ(shape("visual.proj"), (Shape{768, 512}));
  EXPECT_EQ(shape("visual.conv1.weight"), (Shape{768, 3, 32, 32}));
  EXPECT_EQ(shape("visual.ln_pre.weight"), Shape{768});
  EXPECT_EQ(shape("visual.ln_post.bias"), Shape{768});
  EXPECT_EQ(shape("visual.transformer.resblocks.11.attn.in_proj_weight"), (Shape{2304, 768}));
  EXPECT_EQ(shape("visual.transformer.resblocks.0.attn.out_proj.bias"), Shape{768});
  EXPECT_EQ(shape("visual.transformer.resblocks.0.mlp.c_fc.weight"), (Shape{3072, 768}));
  EXPECT_EQ(shape("transformer.resblocks.11.mlp.c_proj.weight"), (Shape{512, 2048}));
  EXPECT_EQ(shape("transformer.resblocks.0.ln_2.weight"), Shape{512});
  EXPECT_EQ(shape("token_embedding.weight"), (Shape{49408, 512}));
  EXPECT_EQ(shape("ln_final.bias"), Shape{512});
}

TEST(ClipModelTest, StateOfRN50HasThe489TensorsOfTheReleasedFile) {
  const ClipModel resnet(rn50(), at::kMeta);
  const auto state = test::by_name(resnet->state());
  EXPECT_EQ(state.size(), 489U);
  EXPECT_EQ(resnet->named_trainable().size(), 324U);
  const auto shape = [&](const std::string& name) { return state.at(name).sizes().vec(); };
  using Shape = std::vector<int64_t>;
  EXPECT_EQ(shape("visual.conv1.weight"), (Shape{32, 3, 3, 3}));
  EXPECT_EQ(shape("visual.bn3.running_var"), Shape{64});
  EXPECT_EQ(shape("visual.layer2.3.conv2.weight"), (Shape{128, 128, 3, 3}));
  EXPECT_EQ(shape("visual.layer4.0.downsample.0.weight"), (Shape{2048, 1024, 1, 1}));
  EXPECT_EQ(shape("visual.layer4.0.downsample.1.num_batches_tracked"), Shape{});
  EXPECT_EQ(shape("visual.attnpool.positional_embedding"), (Shape{50, 2048}));
  EXPECT_EQ(shape("visual.attnpool.c_proj.weight"), (Shape{1024, 2048}));
  EXPECT_EQ(shape("text_projection"), (Shape{512, 1024}));
}

// The order in which open_clip numbers the parameters of an optimizer state.
TEST(ClipModelTest, ParametersComeInOpenClipsOrder) {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : ClipModel(small(), at::kMeta)->named_trainable()) names.push_back(name);
  const std::vector<std::string> expected = {
      "positional_embedding",        "text_projection", "logit_scale",         "visual.class_embedding",
      "visual.positional_embedding", "visual.proj",     "visual.conv1.weight", "visual.ln_pre.weight"};
  EXPECT_EQ(std::vector<std::string>(names.begin(), names.begin() + 8), expected);
  EXPECT_EQ(names[names.size() - 3], "token_embedding.weight");
  EXPECT_EQ(names.back(), "ln_final.bias");
}

TEST(ClipModelTest, FeaturesAreUnitRowsAndTheScaleIsExponentiated) {
  auto clip = model(small());
  const auto output = clip->forward(test::random_normal({3, 3, 32, 32}, 1), some_tokens(3));
  EXPECT_TRUE(test::tensors_near("image norm", output.image_features.norm(2, 1), at::ones({3}), {1e-6, 0}));
  EXPECT_TRUE(test::tensors_near("text norm", output.text_features.norm(2, 1), at::ones({3}), {1e-6, 0}));
  EXPECT_NEAR(output.logit_scale.item<double>(), 1 / 0.07, 1e-4);
  EXPECT_THROW(clip->forward(test::random_normal({3, 3, 32, 32}, 1), some_tokens(2)), c10::Error);
}

TEST(ClipModelTest, UnderAutocastFeaturesAreNormalisedInFp32) {
  auto clip = model(small());
  const AutocastGuard guard(at::kCPU, true);
  const auto output = clip->forward(test::random_normal({3, 3, 32, 32}, 1), some_tokens(3));
  EXPECT_EQ(output.image_features.scalar_type(), at::kFloat);
  EXPECT_TRUE(test::tensors_near("norm", output.text_features.norm(2, 1), at::ones({3}), {1e-6, 0}));
}

TEST(ClipModelTest, InitialisationDependsOnTheGeneratorOnly) {
  for (const auto& config : {small(), small_resnet()}) {
    at::manual_seed(1);
    const auto first = model(config, 7)->state();
    at::manual_seed(2);
    const auto second = model(config, 7)->state(), other = model(config, 8)->state();
    for (size_t i = 0; i < first.size(); ++i) {
      EXPECT_TRUE(test::tensors_equal(first[i].first, second[i].second, first[i].second));
    }
    const auto difference =
        (test::by_name(first).at("visual.conv1.weight") - test::by_name(other).at("visual.conv1.weight"));
    EXPECT_GT(difference.abs().max().item<double>(), 0);
  }
}

TEST(ClipModelTest, LoadingAStateGivesTheSameFeatures) {
  for (const auto& config : {small(), small_resnet()}) {
    const auto pixels = config.vision_cfg.image_size;
    const auto images = test::random_normal({2, 3, pixels, pixels}, 1);
    auto source = model(config, 1), target = model(config, 2);
    source->encode_image(images);
    target->load_state(source->state());
    source->eval();
    target->eval();
    EXPECT_TRUE(test::tensors_equal("image", target->encode_image(images), source->encode_image(images)));
    EXPECT_TRUE(test::tensors_equal("text", target->encode_text(some_tokens(2)), source->encode_text(some_tokens(2))));
  }
}

TEST(ClipModelTest, LoadingReportsEveryTensorThatDoesNotFitAndChangesNothing) {
  auto source = model(small(), 1), target = model(small(), 2);
  auto tensors = source->state();
  std::erase_if(tensors, [](const auto& item) { return item.first == "visual.proj" || item.first == "ln_final.bias"; });
  tensors.emplace_back("visual.extra", at::zeros({3}));
  for (auto& [name, tensor] : tensors) {
    if (name == "text_projection") tensor = at::zeros({32, 25});
  }
  const auto before = target->visual->named_parameters()["class_embedding"].clone();
  const auto message = load_error(target, tensors);
  for (const auto* part :
       {"4 tensors", "visual.proj: missing, expected [32, 24]", "ln_final.bias: missing, expected [32]",
        "visual.extra: unexpected, [3]", "text_projection: expected [32, 24], found [32, 25]"}) {
    EXPECT_NE(message.find(part), std::string::npos) << part << " in " << message;
  }
  EXPECT_TRUE(test::tensors_equal("class", target->visual->named_parameters()["class_embedding"], before));
}

TEST(ClipModelTest, PublishedVariantsOfCountersAndScaleAreAccepted) {
  auto source = model(small_resnet(), 1), target = model(small_resnet(), 2);
  auto tensors = source->state();
  std::erase_if(tensors, [](const auto& item) { return item.first.ends_with("num_batches_tracked"); });
  for (auto& [name, tensor] : tensors) {
    if (name == "logit_scale") tensor = at::full({1}, 3.0);
    if (name == "visual.conv1.weight") tensor = tensor.detach().to(at::kHalf);
  }
  EXPECT_EQ(load_error(target, tensors), "");
  EXPECT_EQ(target->logit_scale.item<float>(), 3.0F);
  EXPECT_EQ(target->visual->named_parameters()["conv1.weight"].scalar_type(), at::kFloat);
}

TEST(ClipModelTest, TheLogitScaleIsClampedToOneAndOneHundred) {
  auto clip = model(small());
  const auto clamped = [&](double value) {
    {
      const at::NoGradGuard no_grad;
      clip->logit_scale.fill_(value);
    }
    clip->clamp_logit_scale();
    return clip->logit_scale.item<double>();
  };
  EXPECT_NEAR(clamped(9.0), std::log(100.0), 1e-6);
  EXPECT_EQ(clamped(-1.0), 0.0);
  EXPECT_EQ(clamped(2.5), 2.5);
}

TEST(ClipModelTest, FrozenParametersAreNotTrainable) {
  auto clip = model(small());
  for (auto& parameter : clip->visual->parameters()) parameter.requires_grad_(false);
  for (const auto& [name, tensor] : clip->named_trainable()) EXPECT_FALSE(name.starts_with("visual.")) << name;
}

TEST(ClipModelTest, AnInvalidConfigIsRefused) {
  auto config = small();
  config.text_cfg.heads = 5;
  EXPECT_THROW(ClipModel{config}, ConfigError);
}

}  // namespace
}  // namespace contrastive::models
