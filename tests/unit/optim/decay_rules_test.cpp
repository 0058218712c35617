#include "contrastive/optim/decay_rules.h"

#include <string>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/models/clip_model.h"

#include "tests/support/errors.h"

namespace contrastive::optim {
namespace {

models::ModelConfig vit_b32() {
  models::ModelConfig config;
  config.vision_cfg.patch_size = 32;
  return config;
}

struct Counts {
  int64_t tensors = 0, values = 0;
};

Counts decayed(const NamedTensors& parameters, const DecayRule& rule) {
  Counts counts;
  for (const auto& [name, tensor] : parameters) {
    if (rule(name, tensor)) counts = {counts.tensors + 1, counts.values + tensor.numel()};
  }
  return counts;
}

TEST(DecayRuleTest, ViTB32HasTheDecaySetsOfBothOpenClipRules) {
  const auto parameters = models::ClipModel(vit_b32(), at::kMeta)->named_trainable();
  const auto classic = decayed(parameters, decay_rule("open_clip_3"));
  EXPECT_EQ(parameters.size(), 302U);
  EXPECT_EQ(classic.tensors, 102);
  EXPECT_EQ(classic.values, 151072768);
  EXPECT_EQ(decayed(parameters, decay_rule("open_clip_main")).tensors, 100);
  EXPECT_EQ(decayed(parameters, decay_rule("kernels")).tensors, 99);  // no tables: neither tokens nor positions
}

TEST(DecayRuleTest, OnlyTheClassicRuleDecaysPositionalEmbeddings) {
  const auto matrix = at::zeros({2, 2});
  EXPECT_TRUE(open_clip_decays("visual.positional_embedding", matrix));
  EXPECT_FALSE(matrix_decays("visual.positional_embedding", matrix));
  EXPECT_FALSE(matrix_decays("positional_embedding", matrix));
  EXPECT_TRUE(matrix_decays("visual.attnpool.positional_embedding", matrix));
  EXPECT_FALSE(open_clip_decays("visual.class_embedding", at::zeros({2})));
  EXPECT_FALSE(open_clip_decays("logit_scale", matrix));
}

TEST(DecayRuleTest, KernelsAreWeightsOfDenseLayersAndConvolutions) {
  const auto matrix = at::zeros({2, 2}), vector = at::zeros({2});
  for (const char* name :
       {"visual.trunk.blocks.0.attn.qkv.weight", "visual.trunk.attn_pool.kv.weight", "text.text_projection.weight",
        "text.transformer.resblocks.3.attn.in_proj_weight", "visual.proj", "text_projection",
        "text.transformer.encoder.layer.0.attention.self.query.weight"}) {
    EXPECT_TRUE(kernel_decays(name, matrix)) << name;
  }
  EXPECT_TRUE(kernel_decays("visual.trunk.patch_embed.proj.weight", at::zeros({2, 3, 4, 4})));
  for (const char* name : {"text.token_embedding.weight", "text.transformer.embeddings.word_embeddings.weight",
                           "text.positional_embedding", "visual.trunk.pos_embed", "visual.trunk.cls_token",
                           "visual.trunk.attn_pool.latent"}) {
    EXPECT_FALSE(kernel_decays(name, matrix)) << name;
  }
  for (const char* name : {"visual.trunk.norm.weight", "visual.trunk.norm.bias", "logit_scale", "logit_bias"}) {
    EXPECT_FALSE(kernel_decays(name, vector)) << name;
  }
}

TEST(DecayRuleTest, AllAndNoneAskForNothing) {
  EXPECT_TRUE(decay_rule("all")("logit_scale", at::zeros({})));
  EXPECT_FALSE(decay_rule("none")("w.weight", at::zeros({2, 2})));
}

TEST(DecayRuleTest, AnUnknownRuleIsAnError) {
  EXPECT_EQ(test::message_of<ConfigError>([] { decay_rule("some"); }),
            "[decay_rule] expected open_clip_3, open_clip_main, kernels, all or none, found some");
}

}  // namespace
}  // namespace contrastive::optim
