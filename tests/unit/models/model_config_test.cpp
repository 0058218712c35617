#include "contrastive/models/model_config.h"

#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/config_node.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"

#include "tests/support/paths.h"

namespace contrastive::models {
namespace {

constexpr const char* kVitB32 = R"({"embed_dim": 512,
  "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
  "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}})";

ModelConfig parse(const std::string& json) {
  return load_model_config(parse_config(json, "m.json"));
}

std::string error_of(const std::string& json) {
  try {
    parse(json);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

std::string with_vision(const std::string& field) {
  return R"({"embed_dim": 64, "vision_cfg": {)" + field + R"(}, "text_cfg": {}})";
}

std::string with_text(const std::string& field) {
  return R"({"embed_dim": 64, "vision_cfg": {}, "text_cfg": {)" + field + "}}";
}

void expect_error(const std::string& json, const std::string& part) {
  EXPECT_NE(error_of(json).find(part), std::string::npos) << "no \"" << part << "\" in: " << error_of(json);
}

TEST(ModelConfigTest, ReadsTheFileOfAVisionTransformer) {
  const auto config = parse(kVitB32);
  EXPECT_EQ(config.embed_dim, 512);
  EXPECT_EQ(config.vision_cfg.layers, std::vector<int64_t>{12});
  EXPECT_EQ(config.vision_cfg.heads(), 12);
  EXPECT_EQ(config.text_cfg.context_length, 77);
  EXPECT_FALSE(config.quick_gelu);
  EXPECT_NEAR(config.init_logit_scale, 2.6592600, 1e-7);
}

TEST(ModelConfigTest, AListOfFourLayerCountsIsAResnet) {
  const auto config = parse(with_vision(R"("layers": [3, 4, 6, 3], "width": 64, "patch_size": null)"));
  EXPECT_TRUE(config.vision_cfg.is_resnet());
  EXPECT_EQ(config.vision_cfg.heads(), 32);
  EXPECT_EQ(config.vision_cfg.output_width(), 2048);
}

TEST(ModelConfigTest, UnknownFieldsAreErrorsWithTheNearestName) {
  const auto message = error_of(with_vision(R"("widht": 64)"));
  EXPECT_NE(message.find("vision_cfg.widht"), std::string::npos) << message;
  EXPECT_NE(message.find("did you mean width"), std::string::npos) << message;
}

TEST(ModelConfigTest, UnsupportedFieldsOfOpenClipAreNamed) {
  expect_error(with_vision(R"("timm_model_name": "convnext_base")"),
               "vision_cfg.timm_model_name: 'convnext_base' is not supported by this version");
  expect_error(with_vision(R"("timm_model_name": "vit_base_patch16_siglip_gap_224")"),
               "is not supported by this version");
  expect_error(with_vision(R"("timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "rot_attn")"),
               "vision_cfg.timm_pool: 'rot_attn' is not one of");
  expect_error(with_vision(R"("timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "token")"),
               "vision_cfg.pool_type: tok needs a class token");
  expect_error(with_vision(R"("timm_model_name": "resnetv2_50x1_bit", "timm_pool": "map")"),
               "a BiT or Mixer is pooled by the mean");
  expect_error(with_vision(R"("attentional_pool": true)"), "vision_cfg.attentional_pool");
  expect_error(with_vision(R"("timm_drop": 0.1)"), "vision_cfg.timm_drop: not supported by this version (only 0)");
  expect_error(with_vision(R"("act_kwargs": {"approximate": "sigmoid"})"), "vision_cfg.act_kwargs.approximate");
  expect_error(with_vision(R"("norm_kwargs": {"epsilon": 1e-6})"), "vision_cfg.norm_kwargs.epsilon: unknown key");
  expect_error(with_text(R"("hf_model_name": "roberta-base")"), "text_cfg.hf_model_name");
  expect_error(with_text(R"("hf_model_name": "bert-base-uncased")"),
               "text_cfg.hf_proj_type: expected linear or none, found mlp");
  expect_error(
      with_text(R"("hf_model_name": "bert-base-uncased", "hf_proj_type": "none", "hf_pooler_type": "cls_pooler")"),
      "text_cfg.hf_pooler_type: expected cls_last_hidden_state_pooler, found cls_pooler");
  expect_error(with_text(R"("embed_cls": true)"), "text_cfg.embed_cls");
  expect_error(R"({"embed_dim": 64, "vision_cfg": {}, "text_cfg": {}, "multimodal_cfg": {"width": 8}})",
               "multimodal_cfg");
}

TEST(ModelConfigTest, ReadsLayerScalePatchDropoutAndTheKindsOfNormAndActivation) {
  const auto config = parse(with_vision(
      R"("ls_init_value": 1e-4, "patch_dropout": 0.5, "act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6})"));
  EXPECT_EQ(config.vision_cfg.ls_init_value, 1e-4);
  EXPECT_EQ(config.vision_cfg.patch_dropout, 0.5);
  EXPECT_TRUE(config.vision_cfg.gelu_tanh);
  EXPECT_EQ(config.vision_cfg.norm_eps, 1e-6);
  EXPECT_EQ(parse(to_json(to_node(config))), config);
  expect_error(with_vision(R"("layers": [1, 1, 1, 1], "patch_dropout": 0.5)"), "a ResNet has no");
  expect_error(with_vision(R"("patch_dropout": 1.0)"), "vision_cfg.patch_dropout");
}

TEST(ModelConfigTest, ASiglipTowerTakesItsSizesFromItsName) {
  const std::string head = R"({"embed_dim": 1152, "init_logit_bias": -10, "custom_text": true, "vision_cfg": {
    "image_size": 384, "timm_model_name": "vit_so400m_patch14_siglip_384", "timm_model_pretrained": false,
    "timm_pool": "map", "timm_proj": "none")";
  const auto config = parse(head + R"(}, "text_cfg": {"width": 1152, "heads": 16, "proj_bias": true,
    "norm_kwargs": {"eps": 1e-6}, "pool_type": "last", "no_causal_mask": true, "hf_tokenizer_name": "a/b",
    "tokenizer_kwargs": {"clean": "canonicalize"}}})");
  EXPECT_EQ(config.vision_cfg.width, 1152);
  EXPECT_EQ(config.vision_cfg.layers, std::vector<int64_t>{27});
  EXPECT_EQ(config.vision_cfg.heads(), 16);
  EXPECT_EQ(config.vision_cfg.patch_size, 14);
  EXPECT_FALSE(config.vision_cfg.gelu_tanh);
  EXPECT_EQ(config.init_logit_bias, -10);
  EXPECT_EQ(config.text_cfg.tokenizer_clean, "canonicalize");
  EXPECT_EQ(parse(to_json(to_node(config))), config);
  expect_error(head + R"(, "timm_model_kwargs": {"embed_dim": 64, "num_heads": 2}}, "text_cfg": {}})",
               "embed_dim: must be the image tower's width 64 with timm_proj none, but is 1152");
}

TEST(ModelConfigTest, DefaultsOfOtherLibrariesAreOpenClips) {
  const auto vision = [](const std::string& rest) {
    return parse(R"({"embed_dim": 768, "vision_cfg": {"timm_model_name": "vit_base_patch16_224", )" + rest + R"(},
                     "text_cfg": {}})")
        .vision_cfg;
  };
  EXPECT_TRUE(vision(R"("timm_pool": "avg", "timm_proj": "none")").final_ln_after_pool);
  EXPECT_FALSE(vision(R"("timm_pool": "avg", "timm_proj": "linear")").final_ln_after_pool);
  EXPECT_FALSE(vision(R"("timm_pool": "avg", "timm_proj": "none", "timm_model_kwargs": {"fc_norm": false})")
                   .final_ln_after_pool);
  EXPECT_FALSE(vision(R"("timm_pool": "token", "timm_proj": "none")").final_ln_after_pool);
  const std::string bert = R"({"embed_dim": 768, "vision_cfg": {"width": 768}, "text_cfg": {"context_length": 16,
    "hf_model_name": "bert-base-uncased", "hf_pooler_type": "cls_last_hidden_state_pooler", "hf_proj_type": null}})";
  const auto config = parse(bert);
  EXPECT_EQ(config.text_cfg.proj_type, "none");
  EXPECT_EQ(parse(to_json(to_node(config))), config);
  EXPECT_NE(to_json(to_node(config), -1).find("\"hf_proj_type\":null"), std::string::npos);
}

TEST(ModelConfigTest, TowersOfOtherLibrariesSurviveBeingWritten) {
  const std::string text = R"("text_cfg": {"context_length": 16, "hf_model_name": "bert-base-uncased",
    "hf_proj_type": "linear", "hf_pooler_type": "cls_last_hidden_state_pooler", "proj_bias": true,
    "hf_model_config": {"hidden_size": 40, "num_attention_heads": 2, "intermediate_size": 96, "hidden_act": "gelu_new"},
    "tokenizer_kwargs": {"policy": "lit"}})";
  for (
      const std::string vision :
      {R"("timm_model_name": "vit_base_patch16_224", "timm_pool": "token", "timm_proj": "linear", "timm_proj_bias": true,
           "timm_model_kwargs": {"act_layer": "gelu_tanh", "pre_logits": true, "init_values": 1e-5})",
       R"("timm_model_name": "vit_large_patch16_224.augreg_in21k", "timm_pool": "avg", "timm_proj": "linear",
           "timm_model_kwargs": {"class_token": false, "fc_norm": true, "depth": 3, "pre_norm": true})",
       R"("timm_model_name": "resnetv2_101x1_bit", "timm_proj": "linear",
           "timm_model_kwargs": {"layers": [2, 2], "stem_width": 8, "norm_groups": 4, "weight_norm_eps": 1e-10})",
       R"("timm_model_name": "mixer_l16_224", "timm_proj": "linear",
           "timm_model_kwargs": {"token_mlp_width": 24, "depth": 2, "embed_dim": 32})"}) {
    const auto config = parse(R"({"embed_dim": 64, "vision_cfg": {)" + vision + "}, " + text + "}");
    EXPECT_TRUE(config.custom_text);
    EXPECT_EQ(config.text_cfg.width, 40);
    EXPECT_EQ(config.text_cfg.hf_tokenizer_name, "bert-base-uncased");
    EXPECT_EQ(parse(to_json(to_node(config))), config) << to_json(to_node(config));
  }
}

TEST(ModelConfigTest, TextMayBePooledAtItsOwnEndToken) {
  expect_error(with_text(R"("pool_type": "eos")"), "text_cfg.eos_id: pool_type eos needs the id it pools at");
  const auto config = parse(with_text(R"("pool_type": "eos", "eos_id": 2)"));
  EXPECT_EQ(config.text_cfg.eos_id, 2);
  EXPECT_EQ(parse(to_json(to_node(config))), config);
  expect_error(with_text(R"("proj_type": "none")"), "embed_dim: must be the text's width 512 with proj_type none");
}

TEST(ModelConfigTest, UnsupportedFieldsMayHaveTheValueThatSwitchesThemOff) {
  const auto plain = parse(with_vision(""));
  EXPECT_EQ(
      parse(with_vision(R"("timm_model_name": null, "timm_pool": "avg", "patch_dropout": 0.0, "ls_init_value": null,
    "attentional_pool": false, "attn_pooler_queries": 256, "act_kwargs": {}, "pos_embed_type": "learnable")")),
      plain);
  EXPECT_EQ(parse(with_text(R"("embed_cls": false, "pad_id": 0, "proj_type": "linear", "hf_proj_type": "mlp")")),
            plain);
}

TEST(ModelConfigTest, InconsistentSizesAreErrors) {
  expect_error(with_vision(R"("width": 100)"), "vision_cfg.head_width: 64 doesn't divide the width 100");
  expect_error(with_vision(R"("patch_size": 15)"), "vision_cfg.patch_size: 15 doesn't divide the image_size 224");
  expect_error(with_vision(R"("layers": [1, 1, 1])"), "vision_cfg.layers");
  expect_error(with_vision(R"("layers": "many")"), "vision_cfg.layers");
  expect_error(with_vision(R"("layers": [1, 1, 1, 1], "image_size": 100)"), "multiple of 32");
  expect_error(with_vision(R"("image_size": [224, 336])"), "only square images are supported");
  expect_error(with_vision(R"("patch_size": null)"), "vision_cfg.patch_size: a ViT needs one");
  expect_error(with_text(R"("heads": 7)"), "text_cfg.heads: 7 don't divide the width 512");
  expect_error(with_text(R"("pool_type": "mean")"), "text_cfg.pool_type");
  expect_error(R"({"vision_cfg": {}, "text_cfg": {}})", "embed_dim");
}

TEST(ModelConfigTest, HugeSizesAreRefusedBeforeMemoryIsTaken) {
  expect_error(with_vision(R"("width": 99999999999)"), "vision_cfg.width");
  expect_error(with_vision(R"("image_size": 999999999)"), "vision_cfg.image_size");
  expect_error(with_vision(R"("layers": 999999999)"), "vision_cfg.layers");
  expect_error(with_text(R"("vocab_size": 99999999999)"), "text_cfg.vocab_size");
}

TEST(ModelConfigTest, EveryProblemIsReportedTogether) {
  const auto message = error_of(R"({"embed_dim": 0, "vision_cfg": {"qk_norm": true}, "text_cfg": {"layrs": 2}})");
  for (const auto* part : {"embed_dim", "vision_cfg.qk_norm", "text_cfg.layrs"}) {
    EXPECT_NE(message.find(part), std::string::npos) << part << " in " << message;
  }
}

TEST(ModelConfigTest, WritesOnlyWhatDiffersFromOpenClipsDefaults) {
  auto config = parse(kVitB32);
  const auto node = to_node(config);
  EXPECT_EQ(node.find("quick_gelu"), nullptr);
  EXPECT_EQ(node.find("vision_cfg")->find("pool_type"), nullptr);
  EXPECT_EQ(load_model_config(node), config);
  config.quick_gelu = true;
  config.vision_cfg.pool_type = "avg";
  config.vision_cfg.mlp_ratio = 4.3637;
  config.text_cfg.no_causal_mask = true;
  EXPECT_EQ(parse(to_json(to_node(config))), config);
}

TEST(ModelConfigTest, OurOwnKeysStayOutOfOpenClipsFile) {
  const auto config = parse(R"({"embed_dim": 64, "vision_cfg": {}, "text_cfg": {}, "checkpoint_activations": true})");
  EXPECT_TRUE(config.checkpoint_activations);
  EXPECT_EQ(to_node(config).find("checkpoint_activations"), nullptr);
  EXPECT_EQ(parse(to_json(to_full_node(config))), config);
  const auto plain = parse(kVitB32);
  EXPECT_FALSE(plain.checkpoint_activations);
  EXPECT_EQ(to_json(to_full_node(plain)), to_json(to_node(plain)));
  expect_error(R"({"embed_dim": 64, "vision_cfg": {}, "text_cfg": {}, "checkpoint_activations": 1})",
               "m.json:1:79: checkpoint_activations: expected true or false, found '1'");
}

TEST(ModelConfigTest, ValidateRejectsWhatWasNotReadFromAFile) {
  ModelConfig config;
  config.text_cfg.heads = 5;
  EXPECT_THROW(validate(config), ConfigError);
  config.text_cfg.heads = 8;
  EXPECT_NO_THROW(validate(config));
}

// Radford et al. 2021, table 19 and 20, and the released checkpoints' exact sizes.
TEST(ModelConfigTest, ParameterCountsOfTheNineReleasedModelsAreExact) {
  const auto count = [](std::vector<int64_t> layers, int64_t width, int64_t pixels, int64_t patch, int64_t embed_dim,
                        int64_t text_width) {
    ModelConfig config;
    config.embed_dim = embed_dim;
    config.vision_cfg = {.layers = std::move(layers), .width = width, .patch_size = patch, .image_size = pixels};
    config.text_cfg = {.width = text_width, .heads = text_width / 64};
    return parameter_count(config);
  };
  EXPECT_EQ(count({3, 4, 6, 3}, 64, 224, 16, 1024, 512), 102007137);
  EXPECT_EQ(count({3, 4, 23, 3}, 64, 224, 16, 512, 512), 119688033);
  EXPECT_EQ(count({4, 6, 10, 6}, 80, 288, 16, 640, 640), 178300601);
  EXPECT_EQ(count({6, 8, 18, 8}, 96, 384, 16, 768, 768), 290979217);
  EXPECT_EQ(count({3, 15, 36, 10}, 128, 448, 16, 1024, 1024), 623258305);
  EXPECT_EQ(count({12}, 768, 224, 32, 512, 512), 151277313);
  EXPECT_EQ(count({12}, 768, 224, 16, 512, 512), 149620737);
  EXPECT_EQ(count({24}, 1024, 224, 14, 768, 768), 427616513);
  EXPECT_EQ(count({24}, 1024, 336, 14, 768, 768), 427944193);
}

// Of open_clip's own classes: tests/fixtures/models/make_parameter_counts.py.
TEST(ModelConfigTest, ParameterCountsOfTheShippedConfigsAreThoseOfOpenClip) {
  const auto counts = load_config(test::own_fixtures_dir() / "models" / "parameter_counts.json");
  ASSERT_FALSE(counts.entries.empty());
  for (const auto& entry : counts.entries) {
    const auto config = model_config_from_file(find_resource("configs/models/" + entry.key + ".json"));
    EXPECT_EQ(std::to_string(parameter_count(config)), entry.value.scalar) << entry.key;
    EXPECT_EQ(parse(to_json(to_node(config))), config) << entry.key;
  }
}

}  // namespace
}  // namespace contrastive::models
