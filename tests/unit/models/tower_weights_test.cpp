// Names and shapes of files as their libraries write them (big_vision, timm 1.0, transformers 4.57), in small. Values
// are compared with the references in tests/parity/lit_towers_test.cpp.
#include "contrastive/models/tower_weights.h"

#include <algorithm>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"

#include "tests/support/errors.h"
#include "tests/support/tensors.h"

namespace contrastive::models {
namespace {

using Shapes = std::map<std::string, std::vector<int64_t>>;

std::vector<LazyTensor> tensors_of(const Shapes& shapes) {
  std::vector<LazyTensor> tensors;
  uint64_t seed = 0;
  for (const auto& [name, shape] : shapes) {
    tensors.push_back({name, at::kFloat, shape, [shape = shape, seed] { return test::random_normal(shape, seed); }});
    ++seed;
  }
  return tensors;
}

/// The shapes, and a check that every tensor can be loaded and has the shape and dtype that it promises.
Shapes shapes_of(const std::vector<LazyTensor>& tensors) {
  Shapes shapes;
  for (const auto& tensor : tensors) {
    const auto values = tensor.load();
    EXPECT_EQ(values.sizes().vec(), tensor.shape) << tensor.name;
    EXPECT_EQ(values.scalar_type(), tensor.dtype) << tensor.name;
    EXPECT_TRUE(shapes.emplace(tensor.name, tensor.shape).second) << tensor.name;
  }
  return shapes;
}

void add_dense(const std::string& name, int64_t in, int64_t out, Shapes& shapes) {
  shapes[name + "/kernel"] = {in, out};
  shapes[name + "/bias"] = {out};
}

void add_norm(const std::string& name, int64_t width, Shapes& shapes) {
  shapes[name + "/scale"] = {width};
  shapes[name + "/bias"] = {width};
}

void add_attention(const std::string& name, int64_t width, int64_t heads, Shapes& shapes) {
  for (const std::string part : {"query", "key", "value"}) {
    shapes[name + "/" + part + "/kernel"] = {width, heads, width / heads};
    shapes[name + "/" + part + "/bias"] = {heads, width / heads};
  }
  shapes[name + "/out/kernel"] = {heads, width / heads, width};
  shapes[name + "/out/bias"] = {width};
}

/// An encoder of `depth` blocks, of width 12 with 3 heads and MLPs of 20.
void add_encoder(const std::string& encoder, int depth, bool linen, Shapes& shapes) {
  for (int i = 0; i < depth; ++i) {
    const auto block = fmt::format("{}encoderblock_{}/", encoder, i);
    add_norm(block + "LayerNorm_0", 12, shapes);
    add_attention(block + (linen ? "MultiHeadDotProductAttention_0" : "MultiHeadDotProductAttention_1"), 12, 3, shapes);
    add_norm(block + (linen ? "LayerNorm_1" : "LayerNorm_2"), 12, shapes);
    const std::string mlp = linen ? "MlpBlock_0" : "MlpBlock_3";
    add_dense(block + mlp + "/Dense_0", 12, 20, shapes);
    add_dense(block + mlp + "/Dense_1", 20, 12, shapes);
  }
  add_norm(encoder + "encoder_norm", 12, shapes);
}

/// A ViT of patches of 4 on images of 12 without anything that pools.
Shapes jax_vit(const std::string& root = "", bool linen = false, int depth = 2) {
  Shapes shapes{{root + "embedding/kernel", {4, 4, 3, 12}}, {root + "embedding/bias", {12}}};
  add_encoder(root + "Transformer/", depth, linen, shapes);
  return shapes;
}

Shapes jax_cls_vit() {
  auto shapes = jax_vit();
  shapes["cls"] = {1, 1, 12};
  shapes["Transformer/posembed_input/pos_embedding"] = {1, 10, 12};
  return shapes;
}

void add_map_head(const std::string& name, Shapes& shapes) {
  shapes[name + "probe"] = {1, 1, 12};
  add_attention(name + "MultiHeadDotProductAttention_0", 12, 3, shapes);
  add_norm(name + "LayerNorm_0", 12, shapes);
  add_dense(name + "MlpBlock_0/Dense_0", 12, 20, shapes);
  add_dense(name + "MlpBlock_0/Dense_1", 20, 12, shapes);
}

Shapes jax_text(const std::string& root = "") {
  Shapes shapes{{root + "Embed_0/embedding", {30, 12}}, {root + "pos_embedding", {1, 8, 12}}};
  add_encoder(root + "Encoder_0/", 1, true, shapes);
  add_dense(root + "head", 12, 12, shapes);
  return shapes;
}

void add_torch_pair(const std::string& name, const std::vector<int64_t>& weight, Shapes& shapes) {
  shapes[name + ".weight"] = weight;
  shapes[name + ".bias"] = {weight[0]};
}

/// timm's ViT of the same sizes.
Shapes timm_vit(const std::string& prefix = "", int depth = 2, bool class_token = true) {
  Shapes shapes{{prefix + "pos_embed", {1, class_token ? 10 : 9, 12}}};
  if (class_token) shapes[prefix + "cls_token"] = {1, 1, 12};
  add_torch_pair(prefix + "patch_embed.proj", {12, 3, 4, 4}, shapes);
  for (int i = 0; i < depth; ++i) {
    const auto block = fmt::format("{}blocks.{}.", prefix, i);
    add_torch_pair(block + "norm1", {12}, shapes);
    add_torch_pair(block + "attn.qkv", {36, 12}, shapes);
    add_torch_pair(block + "attn.proj", {12, 12}, shapes);
    add_torch_pair(block + "norm2", {12}, shapes);
    add_torch_pair(block + "mlp.fc1", {20, 12}, shapes);
    add_torch_pair(block + "mlp.fc2", {12, 20}, shapes);
  }
  add_torch_pair(prefix + "norm", {12}, shapes);
  return shapes;
}

Shapes with_prefix(const std::string& prefix, const Shapes& shapes) {
  Shapes result;
  for (const auto& [name, shape] : shapes) result[prefix + name] = shape;
  return result;
}

Shapes hf_bert(const std::string& prefix = "") {
  Shapes shapes{{prefix + "embeddings.word_embeddings.weight", {30, 12}},
                {prefix + "embeddings.position_embeddings.weight", {9, 12}},
                {prefix + "embeddings.token_type_embeddings.weight", {2, 12}}};
  add_torch_pair(prefix + "embeddings.LayerNorm", {12}, shapes);
  const auto layer = prefix + "encoder.layer.0.";
  for (const std::string part : {"query", "key", "value"}) {
    add_torch_pair(layer + "attention.self." + part, {12, 12}, shapes);
  }
  add_torch_pair(layer + "attention.output.dense", {12, 12}, shapes);
  add_torch_pair(layer + "attention.output.LayerNorm", {12}, shapes);
  add_torch_pair(layer + "intermediate.dense", {20, 12}, shapes);
  add_torch_pair(layer + "output.dense", {12, 20}, shapes);
  add_torch_pair(layer + "output.LayerNorm", {12}, shapes);
  return shapes;
}

std::string image_error(const Shapes& shapes, const ImageTowerOptions& options = {}) {
  return test::message_of<CheckpointError>([&] { image_tower_weights(tensors_of(shapes), options); });
}

std::string text_error(const Shapes& shapes) {
  return test::message_of<CheckpointError>([&] { text_tower_weights(tensors_of(shapes)); });
}

torch::Tensor loaded(const std::vector<LazyTensor>& tensors, const std::string& name) {
  const auto found = std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.name == name; });
  if (found == tensors.end()) throw std::runtime_error("there is no " + name);
  return found->load();
}

TEST(TowerWeightsTest, GivesGooglesVitTimmsNames) {
  const auto tower = image_tower_weights(tensors_of(jax_cls_vit()));
  EXPECT_EQ(shapes_of(tower.tensors), with_prefix("trunk.", timm_vit()));
  EXPECT_EQ(tower.format, "ViT (.npz)");
  EXPECT_EQ(tower.embed_dim, 12);
  const auto& config = tower.config;
  EXPECT_EQ(config.timm_model_name, "vit_base_patch16_224");
  EXPECT_EQ(config.layers, (std::vector<int64_t>{2}));
  EXPECT_EQ(config.width, 12);
  EXPECT_EQ(config.heads(), 3);
  EXPECT_EQ(static_cast<int64_t>(12 * config.mlp_ratio + 1e-6), 20);
  EXPECT_EQ(config.patch_size, 4);
  EXPECT_EQ(config.image_size, 12);
  EXPECT_EQ(config.pool_type, "tok");
  EXPECT_TRUE(config.class_token);
  EXPECT_TRUE(config.gelu_tanh);
  EXPECT_EQ(config.norm_eps, 1e-6);
  EXPECT_EQ(config.proj_type, "none");
}

TEST(TowerWeightsTest, PutsRowsOfQueryKeyAndValueBelowEachOther) {
  const auto source = tensors_of(jax_cls_vit());
  const auto tower = image_tower_weights(source);
  const std::string attention = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/";
  const auto packed = loaded(tower.tensors, "trunk.blocks.1.attn.qkv.weight");
  const auto key = loaded(source, attention + "key/kernel");  // [in, heads, width]
  // Output channel 1 of head 2 of the keys.
  EXPECT_TRUE(at::equal(packed[12 + 2 * 4 + 1], key.select(1, 2).select(1, 1)));
  const auto bias = loaded(tower.tensors, "trunk.blocks.1.attn.qkv.bias");
  EXPECT_TRUE(at::equal(bias.slice(0, 24), loaded(source, attention + "value/bias").flatten()));
}

TEST(TowerWeightsTest, ReadsBothBlockNumberings) {
  auto shapes = jax_vit("", /*linen=*/true);
  shapes["cls"] = {1, 1, 12};
  shapes["pos_embedding"] = {1, 10, 12};
  EXPECT_EQ(shapes_of(image_tower_weights(tensors_of(shapes)).tensors), with_prefix("trunk.", timm_vit()));
}

TEST(TowerWeightsTest, PutsAZeroRowBeforeATableOfPatchesOnly) {
  auto shapes = jax_vit();
  shapes["cls"] = {1, 1, 12};
  shapes["pos_embedding"] = {1, 9, 12};
  const auto source = tensors_of(shapes);
  const auto table = loaded(image_tower_weights(source).tensors, "trunk.pos_embed");
  EXPECT_TRUE(at::equal(table.slice(1, 0, 1), at::zeros({1, 1, 12})));
  EXPECT_TRUE(at::equal(table.slice(1, 1), loaded(source, "pos_embedding")));
}

TEST(TowerWeightsTest, UnstacksBlocksThatWereRunInALoop) {
  auto shapes = jax_vit("", true, 1);
  Shapes stacked{{"pos_embedding", {1, 9, 12}}};
  for (const auto& [name, shape] : shapes) {
    const auto place = name.find("encoderblock_0/");
    if (place == std::string::npos) {
      stacked[name] = shape;
      continue;
    }
    auto longer = shape;
    longer.insert(longer.begin(), 2);
    stacked["Transformer/encoderblock/" + name.substr(place + std::string("encoderblock_0/").size())] = longer;
  }
  const auto source = tensors_of(stacked);
  const auto tower = image_tower_weights(source);
  EXPECT_EQ(shapes_of(tower.tensors), with_prefix("trunk.", timm_vit("", 2, false)));
  const auto stack = loaded(source, "Transformer/encoderblock/LayerNorm_1/scale");
  for (int round = 0; round < 2; ++round) {
    EXPECT_TRUE(at::equal(loaded(tower.tensors, "trunk.blocks.0.norm2.weight"), stack[0]));
    EXPECT_TRUE(at::equal(loaded(tower.tensors, "trunk.blocks.1.norm2.weight"), stack[1]));
  }
}

TEST(TowerWeightsTest, PoolsByTheMeanWithoutClassTokenAndProbe) {
  auto shapes = jax_vit();
  shapes["Transformer/pos_embedding"] = {1, 9, 12};
  const auto config = image_tower_weights(tensors_of(shapes)).config;
  EXPECT_EQ(config.pool_type, "avg");
  EXPECT_FALSE(config.class_token);
  EXPECT_FALSE(config.final_ln_after_pool);
}

TEST(TowerWeightsTest, ReadsAttentionPoolsBelowTheirNameAndAtTheRoot) {
  for (const std::string place : {"MAPHead_0/", ""}) {
    auto shapes = jax_vit("", true);
    shapes["pos_embedding"] = {1, 9, 12};
    add_map_head(place, shapes);
    const auto tower = image_tower_weights(tensors_of(shapes));
    EXPECT_EQ(tower.config.pool_type, "map");
    EXPECT_EQ(tower.config.timm_model_name, "vit_base_patch16_siglip_224");
    const auto names = shapes_of(tower.tensors);
    EXPECT_EQ(names.at("trunk.attn_pool.latent"), (std::vector<int64_t>{1, 1, 12}));
    EXPECT_EQ(names.at("trunk.attn_pool.q.weight"), (std::vector<int64_t>{12, 12}));
    EXPECT_EQ(names.at("trunk.attn_pool.kv.weight"), (std::vector<int64_t>{24, 12}));
    EXPECT_EQ(names.at("trunk.attn_pool.mlp.fc1.weight"), (std::vector<int64_t>{20, 12}));
    EXPECT_EQ(names.size(), with_prefix("", timm_vit("", 2, false)).size() + 13);
  }
}

TEST(TowerWeightsTest, KeepsAHeadOnlyWhenAsked) {
  auto shapes = jax_cls_vit();
  add_dense("head", 12, 7, shapes);
  add_dense("pre_logits", 12, 12, shapes);
  const auto without = image_tower_weights(tensors_of(shapes));
  EXPECT_EQ(without.embed_dim, 12);
  EXPECT_EQ(without.config.proj_type, "none");
  EXPECT_TRUE(without.config.pre_logits);
  EXPECT_FALSE(shapes_of(without.tensors).contains("head.proj.weight"));
  EXPECT_TRUE(shapes_of(without.tensors).contains("trunk.pre_logits.fc.weight"));
  const auto with = image_tower_weights(tensors_of(shapes), {.keep_head = true});
  EXPECT_EQ(with.embed_dim, 7);
  EXPECT_EQ(with.config.proj_type, "linear");
  EXPECT_TRUE(with.config.proj_bias);
  EXPECT_EQ(shapes_of(with.tensors).at("head.proj.weight"), (std::vector<int64_t>{7, 12}));
}

TEST(TowerWeightsTest, NamesKnownSizesAsTimmDoes) {
  Shapes shapes{{"patch_embed.proj.weight", {384, 3, 32, 32}}};
  for (const auto& [name, shape] : timm_vit("", 1)) {
    auto wide = shape;
    for (auto& size : wide) size = size == 12 ? 384 : size == 36 ? 1152 : size;
    shapes.emplace(name, wide);
  }
  const auto config = image_tower_weights(tensors_of(shapes)).config;
  EXPECT_EQ(config.timm_model_name, "vit_small_patch32_224");
  EXPECT_EQ(config.heads(), 6);
  EXPECT_EQ(config.image_size, 96);
}

TEST(TowerWeightsTest, ListsEverythingThatIsWrongWithAVit) {
  auto shapes = jax_cls_vit();
  shapes.erase("Transformer/encoderblock_1/LayerNorm_2/bias");
  shapes["Transformer/encoder_norm/scale"] = {13};
  shapes["conv_root/kernel"] = {7, 7, 3, 64};
  EXPECT_EQ(image_error(shapes),
            "[ViT (.npz)] missing: Transformer/encoderblock_1/LayerNorm_2/bias [12]; not known: conv_root/kernel "
            "[7, 7, 3, 64]; of another shape or dtype: Transformer/encoder_norm/scale is [13], expected [12]");
}

TEST(TowerWeightsTest, RefusesVitsWhoseSizesCannotBeTold) {
  auto shapes = jax_cls_vit();
  shapes["Transformer/posembed_input/pos_embedding"] = {1, 12, 12};
  EXPECT_EQ(image_error(shapes),
            "[ViT (.npz)] its position table Transformer/posembed_input/pos_embedding has 12 rows, "
            "which are not a square grid");
  shapes = jax_cls_vit();
  shapes["embedding/kernel"] = {4, 4, 3};
  EXPECT_EQ(image_error(shapes),
            "[ViT (.npz)] its sizes can't be told: embedding/kernel is [4, 4, 3], expected 4 dimensions");
  shapes = jax_cls_vit();
  shapes["Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"] = {12, 0, 4};
  EXPECT_EQ(
      image_error(shapes),
      "[ViT (.npz)] its sizes can't be told: Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel "
      "is [12, 0, 4], expected 3 dimensions");
  shapes["Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"] = {12, 5, 4};
  EXPECT_EQ(image_error(shapes), "[ViT (.npz)] its width 12 can't be shared by 5 heads");
}

TEST(TowerWeightsTest, RefusesNamesOfNoKnownLayout) {
  EXPECT_EQ(image_error({{"conv1.weight", {3}}, {"layer1.0.conv1.weight", {3}}}),
            "[weights] 2 tensors are those of no known image tower; their names begin with conv1, layer1");
  EXPECT_EQ(text_error({{"wte.weight", {3, 4}}}),
            "[weights] 1 tensors are those of no known text tower; their names begin with wte");
}

TEST(TowerWeightsTest, LeavesOutTrainingState) {
  const Shapes state{{"opt/0/count", {}}, {"extra/time", {}}, {"step", {}}};
  auto params = with_prefix("params/", jax_cls_vit()), target = with_prefix("opt/target/", jax_cls_vit());
  auto bare = jax_cls_vit();
  for (auto* shapes : {&params, &target, &bare}) {
    shapes->insert(state.begin(), state.end());
    EXPECT_EQ(shapes_of(image_tower_weights(tensors_of(*shapes)).tensors), with_prefix("trunk.", timm_vit()));
  }
}

TEST(TowerWeightsTest, SelectsWhatIsBelowAName) {
  const auto shapes = with_prefix("params/img/", jax_cls_vit());
  EXPECT_EQ(shapes_of(select_subtree(tensors_of(shapes), "img")), jax_cls_vit());
  EXPECT_EQ(shapes_of(select_subtree(tensors_of({{"a.b", {1}}, {"ab.c", {1}}}), "a")), (Shapes{{"b", {1}}}));
  EXPECT_EQ(test::message_of<CheckpointError>([&] { select_subtree(tensors_of(shapes), "txt"); }),
            "[weights] there is nothing below 'txt'; the names begin with img");
}

TEST(TowerWeightsTest, ReadsMixersInBothLayouts) {
  Shapes now{{"stem/kernel", {4, 4, 3, 12}}, {"stem/bias", {12}}};
  Shapes before{{"embedding/kernel", {4, 4, 3, 12}}, {"embedding/bias", {12}}};
  Shapes timm;
  add_torch_pair("trunk.stem.proj", {12, 3, 4, 4}, timm);
  const auto add_mlp = [&](const std::string& name, const std::string& timm_name, int64_t in, int64_t hidden) {
    add_dense("MixerBlock_0/" + name + "/Dense_0", in, hidden, now);
    add_dense("MixerBlock_0/" + name + "/Dense_1", hidden, in, now);
    const auto old = "Mixer/encoderblock_0/" + name + "_phase_0/";
    before[old + "kernel1"] = {1, in, hidden};
    before[old + "bias1"] = {1, 1, hidden};
    before[old + "kernel2"] = {1, hidden, in};
    before[old + "bias2"] = {1, 1, in};
    add_torch_pair("trunk.blocks.0." + timm_name + ".fc1", {hidden, in}, timm);
    add_torch_pair("trunk.blocks.0." + timm_name + ".fc2", {in, hidden}, timm);
  };
  add_mlp("token_mixing", "mlp_tokens", 9, 5);
  add_mlp("channel_mixing", "mlp_channels", 12, 20);
  for (const std::string i : {"0", "1"}) {
    add_norm("MixerBlock_0/LayerNorm_" + i, 12, now);
    add_norm("Mixer/encoderblock_0/LayerNorm_" + i, 12, before);
    add_torch_pair(i == "0" ? "trunk.blocks.0.norm1" : "trunk.blocks.0.norm2", {12}, timm);
  }
  add_norm("pre_head_layer_norm", 12, now);
  add_norm("Mixer/encoder_norm", 12, before);
  add_torch_pair("trunk.norm", {12}, timm);
  for (const auto& shapes : {now, before}) {
    const auto tower = image_tower_weights(tensors_of(shapes));
    EXPECT_EQ(shapes_of(tower.tensors), timm);
    EXPECT_EQ(tower.config.timm_model_name, "mixer_b16_224");
    EXPECT_EQ(tower.config.image_size, 12);
    EXPECT_EQ(tower.config.token_mlp_width, 5);
    EXPECT_EQ(tower.config.layers, (std::vector<int64_t>{1}));
  }
  Shapes torch_names;
  for (const auto& [name, shape] : timm) torch_names[name.substr(std::string("trunk.").size())] = shape;
  add_torch_pair("head", {7, 12}, torch_names);
  const auto tower = image_tower_weights(tensors_of(torch_names));
  EXPECT_EQ(shapes_of(tower.tensors), timm);
  EXPECT_FALSE(tower.config.gelu_tanh);
}

TEST(TowerWeightsTest, ReadsBitWithNumberedConvolutionsAndItsTimmNames) {
  const std::string unit = "resnet/block1/unit01/";
  Shapes google{{"resnet/root_block/standardized_conv2d/kernel", {7, 7, 3, 32}},
                {unit + "a/proj/standardized_conv2d_1/kernel", {1, 1, 32, 128}},
                {unit + "a/standardized_conv2d_2/kernel", {1, 1, 32, 32}},
                {unit + "b/standardized_conv2d_3/kernel", {3, 3, 32, 32}},
                {unit + "c/standardized_conv2d_17/kernel", {1, 1, 32, 128}},
                {"resnet/head/conv2d/kernel", {1, 1, 128, 7}},
                {"resnet/head/conv2d/bias", {7}},
                {"resnet/group_norm/gamma", {128}},
                {"resnet/group_norm/beta", {1, 1, 1, 128}}};
  Shapes timm{{"stem.conv.weight", {32, 3, 7, 7}},
              {"stages.0.blocks.0.downsample.conv.weight", {128, 32, 1, 1}},
              {"stages.0.blocks.0.conv1.weight", {32, 32, 1, 1}},
              {"stages.0.blocks.0.conv2.weight", {32, 32, 3, 3}},
              {"stages.0.blocks.0.conv3.weight", {128, 32, 1, 1}}};
  add_torch_pair("norm", {128}, timm);
  for (const std::string part : {"a", "b", "c"}) {
    google[unit + part + "/group_norm/gamma"] = google[unit + part + "/group_norm/beta"] = {32};
    add_torch_pair(fmt::format("stages.0.blocks.0.norm{}", 1 + part[0] - 'a'), {32}, timm);
  }
  const auto tower = image_tower_weights(tensors_of(google), {.norm_groups = 8});
  EXPECT_EQ(shapes_of(tower.tensors), with_prefix("trunk.", timm));
  EXPECT_EQ(tower.config.timm_model_name, "resnetv2_50x1_bit");
  EXPECT_EQ(tower.config.layers, (std::vector<int64_t>{1}));
  EXPECT_EQ(tower.config.width, 32);
  EXPECT_EQ(tower.config.norm_groups, 8);
  EXPECT_EQ(tower.config.weight_norm_eps, 1e-10);
  const auto same = image_tower_weights(tensors_of(timm));
  EXPECT_EQ(shapes_of(same.tensors), with_prefix("trunk.", timm));
  EXPECT_EQ(same.config.weight_norm_eps, 1e-8);
  EXPECT_EQ(same.config.norm_groups, 32);
}

TEST(TowerWeightsTest, ReadsTimmsVitsAsTheyAre) {
  auto shapes = timm_vit();
  add_torch_pair("head", {1000, 12}, shapes);
  const auto tower = image_tower_weights(tensors_of(shapes), {.heads = 4});
  EXPECT_EQ(shapes_of(tower.tensors), with_prefix("trunk.", timm_vit()));
  EXPECT_EQ(tower.config.heads(), 4);
  EXPECT_FALSE(tower.config.gelu_tanh);
  EXPECT_EQ(tower.config.norm_eps, 1e-6);
  EXPECT_EQ(tower.config.image_size, 12);
}

TEST(TowerWeightsTest, TellsTheMeanPoolOfTimmByItsNorm) {
  auto shapes = timm_vit();
  shapes.erase("norm.weight");
  shapes.erase("norm.bias");
  add_torch_pair("fc_norm", {12}, shapes);
  const auto tower = image_tower_weights(tensors_of(shapes));
  EXPECT_EQ(tower.config.pool_type, "avg");
  EXPECT_TRUE(tower.config.final_ln_after_pool);
  EXPECT_TRUE(tower.config.class_token);
  EXPECT_TRUE(shapes_of(tower.tensors).contains("trunk.fc_norm.weight"));
}

TEST(TowerWeightsTest, FindsTheTowerInFilesOfDinoAndMoCo) {
  auto dino = with_prefix("teacher.backbone.", timm_vit());
  const auto student = with_prefix("student.module.backbone.", timm_vit());
  dino.insert(student.begin(), student.end());
  dino["teacher.head.mlp.0.weight"] = {5, 12};
  dino["dino_loss.center"] = {1, 5};
  auto moco = with_prefix("module.base_encoder.", timm_vit());
  const auto momentum = with_prefix("module.momentum_encoder.", timm_vit());
  moco.insert(momentum.begin(), momentum.end());
  moco["module.base_encoder.head.0.weight"] = {5, 12};
  moco["module.predictor.0.weight"] = {5, 5};
  for (const auto& shapes : {dino, moco}) {
    EXPECT_EQ(shapes_of(image_tower_weights(tensors_of(shapes)).tensors), with_prefix("trunk.", timm_vit()));
  }
}

TEST(TowerWeightsTest, RefusesTimmVitsWithPartsItDoesNotHave) {
  auto shapes = timm_vit();
  shapes["reg_token"] = {1, 4, 12};
  EXPECT_EQ(image_error(shapes), "[ViT (timm)] not known: reg_token [1, 4, 12]");
}

TEST(TowerWeightsTest, TakesTheTimmTowerOfAnOpenClipFileWithItsProjection) {
  auto shapes = with_prefix("visual.trunk.", timm_vit());
  shapes["visual.head.proj.weight"] = {6, 12};
  shapes["text.ln_final.weight"] = {12};
  shapes["logit_scale"] = {};
  const auto with = image_tower_weights(tensors_of(shapes), {.keep_head = true});
  EXPECT_EQ(with.embed_dim, 6);
  EXPECT_FALSE(with.config.proj_bias);
  EXPECT_TRUE(shapes_of(with.tensors).contains("head.proj.weight"));
  const auto without = image_tower_weights(tensors_of(shapes));
  EXPECT_EQ(shapes_of(without.tensors), with_prefix("trunk.", timm_vit()));
}

/// Names as in OpenAI's model.py: a ViT of width 64 on images of 12 and a text tower of one block.
Shapes openai_clip() {
  Shapes shapes{{"visual.class_embedding", {64}},
                {"visual.conv1.weight", {64, 3, 4, 4}},
                {"visual.positional_embedding", {10, 64}},
                {"visual.proj", {64, 6}},
                {"positional_embedding", {8, 64}},
                {"token_embedding.weight", {30, 64}},
                {"text_projection", {64, 6}},
                {"logit_scale", {}},
                {"input_resolution", {}},
                {"context_length", {}},
                {"vocab_size", {}}};
  for (const std::string norm : {"visual.ln_pre", "visual.ln_post", "ln_final"}) add_torch_pair(norm, {64}, shapes);
  for (const std::string block : {"visual.transformer.resblocks.0.", "transformer.resblocks.0."}) {
    add_torch_pair(block + "ln_1", {64}, shapes);
    add_torch_pair(block + "ln_2", {64}, shapes);
    shapes[block + "attn.in_proj_weight"] = {192, 64};
    shapes[block + "attn.in_proj_bias"] = {192};
    add_torch_pair(block + "attn.out_proj", {64, 64}, shapes);
    add_torch_pair(block + "mlp.c_fc", {256, 64}, shapes);
    add_torch_pair(block + "mlp.c_proj", {64, 256}, shapes);
  }
  return shapes;
}

TEST(TowerWeightsTest, TakesTheImageTowerOfOpenAisFiles) {
  const auto source = openai_clip();
  const auto tower = image_tower_weights(tensors_of(source));
  Shapes expected;
  for (const auto& [name, shape] : source) {
    if (name.starts_with("visual.")) expected[name.substr(std::string("visual.").size())] = shape;
  }
  EXPECT_EQ(shapes_of(tower.tensors), expected);
  EXPECT_EQ(tower.embed_dim, 6);
  EXPECT_TRUE(tower.quick_gelu);
  EXPECT_FALSE(tower.config.is_timm());
  EXPECT_EQ(tower.config.image_size, 12);
  EXPECT_EQ(tower.config.width, 64);
}

TEST(TowerWeightsTest, ReadsTheTextEncoder) {
  const auto tower = text_tower_weights(tensors_of(jax_text()));
  Shapes expected{{"positional_embedding", {8, 12}}, {"token_embedding.weight", {30, 12}}};
  const std::string block = "transformer.resblocks.0.";
  add_torch_pair(block + "ln_1", {12}, expected);
  expected[block + "attn.in_proj_weight"] = {36, 12};
  expected[block + "attn.in_proj_bias"] = {36};
  add_torch_pair(block + "attn.out_proj", {12, 12}, expected);
  add_torch_pair(block + "ln_2", {12}, expected);
  add_torch_pair(block + "mlp.c_fc", {20, 12}, expected);
  add_torch_pair(block + "mlp.c_proj", {12, 20}, expected);
  add_torch_pair("ln_final", {12}, expected);
  add_torch_pair("text_projection", {12, 12}, expected);
  EXPECT_EQ(shapes_of(tower.tensors), expected);
  const auto& config = tower.config;
  EXPECT_EQ(config.context_length, 8);
  EXPECT_EQ(config.vocab_size, 30);
  EXPECT_EQ(config.heads, 3);
  EXPECT_EQ(config.pool_type, "last");
  EXPECT_TRUE(config.no_causal_mask);
  EXPECT_TRUE(config.gelu_tanh);
  EXPECT_TRUE(config.proj_bias);
  EXPECT_EQ(config.norm_eps, 1e-6);
}

TEST(TowerWeightsTest, AddsASecondTableOfTextPositions) {
  auto shapes = jax_text();
  shapes["Encoder_0/pos_embedding"] = {1, 8, 12};
  const auto source = tensors_of(shapes);
  const auto table = loaded(text_tower_weights(source).tensors, "positional_embedding");
  EXPECT_TRUE(at::equal(table, (loaded(source, "pos_embedding") + loaded(source, "Encoder_0/pos_embedding"))[0]));
}

TEST(TowerWeightsTest, ReadsTransformersBertWithOldNamesAndHeadsOfPreTraining) {
  auto shapes = hf_bert("bert.");
  shapes["bert.embeddings.position_ids"] = {1, 9};
  add_torch_pair("bert.pooler.dense", {12, 12}, shapes);
  add_torch_pair("cls.predictions.transform.dense", {12, 12}, shapes);
  for (const std::string name : {"bert.embeddings.LayerNorm", "bert.encoder.layer.0.output.LayerNorm"}) {
    shapes.erase(name + ".weight");
    shapes.erase(name + ".bias");
    shapes[name + ".gamma"] = shapes[name + ".beta"] = {12};
  }
  const auto tower = text_tower_weights(tensors_of(shapes), {.heads = 3});
  EXPECT_EQ(shapes_of(tower.tensors), with_prefix("transformer.", hf_bert()));
  const auto& config = tower.config;
  EXPECT_EQ(config.hf_model_name, "bert-base-uncased");
  EXPECT_EQ(config.heads, 3);
  EXPECT_EQ(config.max_positions, 9);
  EXPECT_EQ(config.context_length, 9);
  EXPECT_EQ(config.token_types, 2);
  EXPECT_EQ(config.layers, 1);
  EXPECT_EQ(config.pool_type, "first");
  EXPECT_EQ(config.norm_eps, 1e-12);
  EXPECT_FALSE(config.gelu_tanh);
  EXPECT_EQ(config.proj_type, "none");
  EXPECT_EQ(tower.embed_dim, 12);
}

TEST(TowerWeightsTest, ListsWhatABertLacks) {
  auto shapes = hf_bert();
  shapes.erase("encoder.layer.0.attention.self.key.bias");
  shapes["encoder.layer.0.crossattention.self.key.bias"] = {12};
  EXPECT_EQ(text_error(shapes),
            "[BERT (transformers)] missing: encoder.layer.0.attention.self.key.bias [12]; not known: "
            "encoder.layer.0.crossattention.self.key.bias [12]");
}

constexpr const char* kBertConfig =
    R"({"model_type": "bert", "vocab_size": 30, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 20, "max_position_embeddings": 9, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
        "pad_token_id": 4, "position_embedding_type": "absolute"})";

std::string bert_config_error(const std::string& override_text) {
  return test::message_of([&] {
    auto config = parse_config(kBertConfig, "config.json");
    apply_override(config, override_text);
    text_tower_from_bert_config(config, tensors_of(hf_bert()));
  });
}

TEST(TowerWeightsTest, TakesFromABertsConfigWhatItsWeightsDoNotTell) {
  const auto tower = text_tower_from_bert_config(parse_config(kBertConfig, "config.json"), tensors_of(hf_bert()));
  EXPECT_EQ(tower.config.heads, 2);
  EXPECT_EQ(tower.config.norm_eps, 1e-5);
  EXPECT_EQ(tower.config.pad_id, 4);
  EXPECT_FALSE(tower.config.gelu_tanh);
}

TEST(TowerWeightsTest, RefusesConfigsThatAreNotOfTheseWeights) {
  EXPECT_EQ(bert_config_error("model_type=roberta"),
            "config.json: model_type: only bert is supported, but is 'roberta'");
  EXPECT_EQ(bert_config_error("intermediate_size=24"),
            "[BERT (transformers)] the config says intermediate_size = 24, the weights have 20");
  EXPECT_NE(bert_config_error("hidden_act=relu").find("hidden_act: 'relu' is not supported"), std::string::npos);
  EXPECT_NE(bert_config_error("num_attention_heads=two").find("must be a number, but is 'two'"), std::string::npos);
  EXPECT_NE(bert_config_error("position_embedding_type=relative_key")
                .find("position_embedding_type: only absolute is supported, but is 'relative_key'"),
            std::string::npos);
}

Shapes two_towers() {
  auto shapes = with_prefix("img/", jax_cls_vit());
  const auto text = jax_text("txt/");
  shapes.insert(text.begin(), text.end());
  shapes["t"] = {1};
  return shapes;
}

TEST(TowerWeightsTest, ReadsTwoTowersAsOneModel) {
  auto shapes = two_towers();
  auto model = two_tower_weights(tensors_of(shapes));
  EXPECT_EQ(model.config.embed_dim, 12);
  EXPECT_TRUE(model.config.custom_text);
  EXPECT_FALSE(model.config.init_logit_bias.has_value());
  auto names = shapes_of(model.tensors);
  EXPECT_TRUE(names.contains("visual.trunk.cls_token"));
  EXPECT_TRUE(names.contains("text.text_projection.weight"));
  EXPECT_EQ(names.at("logit_scale"), (std::vector<int64_t>{}));
  shapes["b"] = {1};
  add_dense("img/head", 12, 12, shapes);
  model = two_tower_weights(tensors_of(shapes));
  EXPECT_TRUE(model.config.init_logit_bias.has_value());
  names = shapes_of(model.tensors);
  EXPECT_EQ(names.at("logit_bias"), (std::vector<int64_t>{}));
  EXPECT_TRUE(names.contains("visual.head.proj.weight"));
}

TEST(TowerWeightsTest, RefusesTwoTowersThatDoNotFitOrHoldMore) {
  const auto error = [](const Shapes& shapes) {
    return test::message_of<CheckpointError>([&] { two_tower_weights(tensors_of(shapes)); });
  };
  auto shapes = two_towers();
  add_dense("img/head", 12, 7, shapes);
  EXPECT_EQ(error(shapes),
            "[ViT (.npz) and text encoder (.npz)] the towers' embeddings differ in width: 7 of images, 12 "
            "of texts");
  shapes = two_towers();
  shapes.erase("t");
  shapes["w"] = {1};
  EXPECT_EQ(error(shapes), "[ViT (.npz) and text encoder (.npz)] missing: t [1]; not known: w [1]");
  EXPECT_EQ(error({{"cls", {1}}}),
            "[weights] 1 tensors are those of no known two towers (img/ and txt/); their names begin "
            "with cls");
  EXPECT_EQ(image_error(two_towers()), "[weights] the file holds two towers; name one (FILE:img)");
  EXPECT_EQ(text_error(two_towers()), "[weights] the file holds two towers; name one (FILE:txt)");
}

TEST(TowerWeightsTest, RefusesWeightsThatAreNoNumbersWithFractions) {
  auto tensors = tensors_of(jax_cls_vit());
  for (auto& tensor : tensors) {
    if (tensor.name == "cls") tensor.dtype = at::kLong;
  }
  EXPECT_EQ(test::message_of<CheckpointError>([&] { image_tower_weights(tensors); }),
            "[ViT (.npz)] of another shape or dtype: cls is of dtype Long");
}

/// Reading either works or throws CheckpointError; nothing else gets out.
template <typename Read>
void read_changed(Shapes shapes, std::mt19937& random, const Read& read) {
  const std::vector<int64_t> sizes{0, 1, 2, 3, 9, 12, 13, 1000, int64_t{1} << 40};
  for (int change = 0; change < 2; ++change) {
    const auto place = std::next(shapes.begin(), static_cast<std::ptrdiff_t>(random() % shapes.size()));
    auto& shape = place->second;
    const auto kind = random() % 4;
    if (kind == 0) shapes.erase(place);
    if (kind == 1) shape.push_back(sizes[random() % sizes.size()]);
    if (kind == 2 && !shape.empty()) shape.pop_back();
    if (kind == 3 && !shape.empty()) shape[random() % shape.size()] = sizes[random() % sizes.size()];
  }
  test::message_of<CheckpointError>([&] { read(tensors_of(shapes)); });
}

TEST(TowerWeightsTest, NeverFailsOtherwiseOnChangedShapes) {
  std::mt19937 random(1);
  auto with_map = jax_vit("", true);
  with_map["pos_embedding"] = {1, 9, 12};
  add_map_head("MAPHead_0/", with_map);
  for (int round = 0; round < 400; ++round) {
    for (const auto& shapes : {jax_cls_vit(), with_map, timm_vit()}) {
      read_changed(shapes, random, [](auto tensors) { image_tower_weights(std::move(tensors)); });
    }
    for (const auto& shapes : {jax_text(), hf_bert()}) {
      read_changed(shapes, random, [](auto tensors) { text_tower_weights(std::move(tensors)); });
    }
    read_changed(two_towers(), random, [](auto tensors) { two_tower_weights(std::move(tensors)); });
  }
}

}  // namespace
}  // namespace contrastive::models
