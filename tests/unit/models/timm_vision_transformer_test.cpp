#include "contrastive/models/timm_vision_transformer.h"

#include <set>
#include <string>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "contrastive/models/clip_model.h"

#include "tests/support/tensors.h"

namespace contrastive::models {
namespace {

ModelConfig tiny(double patch_dropout = 0) {
  ModelConfig config;
  config.embed_dim = 24;
  config.custom_text = true;
  config.init_logit_bias = -10;
  auto& vision = config.vision_cfg;
  vision.timm_model_name = "vit_base_patch16_siglip_224";
  vision.class_token = false;
  vision.pool_type = "map";
  vision.image_size = 20;
  vision.patch_size = 8;
  vision.width = 24;
  vision.head_width = 8;
  vision.layers = {2};
  vision.norm_eps = 1e-6;
  vision.patch_dropout = patch_dropout;
  config.text_cfg = {.context_length = 7, .vocab_size = 40, .width = 16, .heads = 2, .layers = 1};
  config.text_cfg.no_causal_mask = true;
  config.text_cfg.pool_type = "last";
  config.text_cfg.proj_bias = true;
  return config;
}

ClipModel model_of(const ModelConfig& config) {
  ClipModel model(config);
  model->reset_parameters(at::make_generator<at::CPUGeneratorImpl>(uint64_t{3}));
  return model;
}

TEST(TimmVisionTransformerTest, TensorsHaveTheNamesOfTimm) {
  std::set<std::string> names;
  for (const auto& [name, tensor] : model_of(tiny())->state()) names.insert(name);
  for (const char* expected : {"logit_scale",
                               "logit_bias",
                               "visual.trunk.pos_embed",
                               "visual.trunk.patch_embed.proj.weight",
                               "visual.trunk.patch_embed.proj.bias",
                               "visual.trunk.blocks.1.norm1.weight",
                               "visual.trunk.blocks.0.attn.qkv.weight",
                               "visual.trunk.blocks.0.attn.proj.bias",
                               "visual.trunk.blocks.0.mlp.fc1.weight",
                               "visual.trunk.blocks.0.mlp.fc2.bias",
                               "visual.trunk.norm.weight",
                               "visual.trunk.attn_pool.latent",
                               "visual.trunk.attn_pool.q.weight",
                               "visual.trunk.attn_pool.kv.weight",
                               "visual.trunk.attn_pool.proj.bias",
                               "visual.trunk.attn_pool.norm.weight",
                               "visual.trunk.attn_pool.mlp.fc1.weight",
                               "text.positional_embedding",
                               "text.token_embedding.weight",
                               "text.transformer.resblocks.0.attn.in_proj_weight",
                               "text.ln_final.bias",
                               "text.text_projection.weight",
                               "text.text_projection.bias"}) {
    EXPECT_TRUE(names.contains(expected)) << expected;
  }
}

TEST(TimmVisionTransformerTest, PixelsBeyondTheLastWholePatchDontMatter) {
  auto model = model_of(tiny());
  const auto images = test::random_normal({2, 3, 20, 20}, 5);
  auto changed = images.clone();
  changed.narrow(2, 16, 4).fill_(7);
  changed.narrow(3, 16, 4).fill_(7);
  EXPECT_TRUE(test::tensors_equal("features", model->encode_image(changed), model->encode_image(images)));
}

TEST(TimmVisionTransformerTest, EveryParameterGetsAGradient) {
  auto model = model_of(tiny());
  model->train();
  const auto output = model->forward(test::random_normal({3, 3, 20, 20}, 5), at::randint(0, 40, {3, 7}, at::kLong));
  (output.image_features.mm(output.text_features.t()) * output.logit_scale + output.logit_bias).pow(3).sum().backward();
  for (const auto& [name, parameter] : model->named_trainable()) EXPECT_TRUE(parameter.grad().defined()) << name;
}

TEST(TimmVisionTransformerTest, PatchDropoutIsDrawnFromTheStepsSeedAndOnlyInTraining) {
  auto model = model_of(tiny(0.5));
  const auto images = test::random_normal({2, 3, 20, 20}, 5);
  const auto encode = [&](uint64_t seed) {
    model->visual->seed_step(seed);
    return model->encode_image(images);
  };
  model->train();
  const auto first = encode(1);
  EXPECT_TRUE(test::tensors_equal("same seed", encode(1), first));
  EXPECT_FALSE(at::equal(encode(2), first));
  model->eval();
  EXPECT_TRUE(test::tensors_equal("evaluation", encode(1), encode(2)));
}

TEST(TimmVisionTransformerTest, AnotherWidthThanTheEmbeddingsIsRefused) {
  auto config = tiny();
  config.embed_dim = 32;
  try {
    ClipModel model(config);
    FAIL() << "no error";
  } catch (const std::exception& error) {
    EXPECT_STREQ(error.what(),
                 "[model config] embed_dim: must be the image tower's width 24 with timm_proj none, but is 32");
  }
}

}  // namespace
}  // namespace contrastive::models
