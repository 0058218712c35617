#include "contrastive/eval/tower_source.h"

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/safetensors.h"
#include "contrastive/eval/checkpoint_source.h"
#include "contrastive/eval/checkpoint_writer.h"
#include "contrastive/eval/encoder.h"
#include "contrastive/eval/model_folder.h"
#include "contrastive/models/clip_model.h"
#include "contrastive/train/run_options.h"

#include "tests/support/errors.h"
#include "tests/support/paths.h"
#include "tests/support/tensors.h"
#include "tests/support/zip.h"

namespace contrastive::eval {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kWidth = 64;  // one head: BERT's files don't tell how many there are

using Arrays = std::map<std::string, torch::Tensor>;

/// A LiT model with the settings of Google's files.
models::ModelConfig lit_config() {
  models::ModelConfig config;
  config.embed_dim = kWidth;
  config.custom_text = true;
  config.init_logit_scale = 2.302585092994046;
  auto& vision = config.vision_cfg;
  vision.timm_model_name = "vit_base_patch16_224";
  vision.image_size = 16;
  vision.patch_size = 4;
  vision.width = kWidth;
  vision.head_width = kWidth;
  vision.layers = {2};
  vision.mlp_ratio = 2;
  vision.norm_eps = 1e-6;
  vision.gelu_tanh = true;
  auto& text = config.text_cfg;
  text = {.context_length = 16, .vocab_size = 9, .width = kWidth, .heads = 1, .layers = 1};
  text.mlp_ratio = 2;
  text.hf_model_name = "bert-base-uncased";
  text.max_positions = 20;
  text.no_causal_mask = true;
  text.pool_type = "first";
  text.norm_eps = 1e-12;
  text.gelu_tanh = true;
  text.proj_bias = true;
  return config;
}

models::ClipModel random_model(const models::ModelConfig& config, uint64_t seed = 4) {
  models::ClipModel model(config);
  model->reset_parameters(at::make_generator<at::CPUGeneratorImpl>(seed));
  const at::NoGradGuard no_grad;
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed + 1);
  for (auto& parameter : model->parameters()) {
    if (parameter.dim() > 0) parameter.add_(at::randn(parameter.sizes(), generator) * 0.02);  // biases and norms, too
  }
  model->eval();
  return model;
}

/// The arrays of a file of Google's that holds the image tower, from timm's names.
Arrays image_arrays(const models::ClipModel& model, const std::string& prefix) {
  Arrays arrays;
  const auto split = [&](const std::string& block, const torch::Tensor& packed, const char* kind) {
    const auto parts = packed.chunk(3);
    int64_t i = 0;
    for (const char* name : {"query", "key", "value"}) {
      const auto part = parts[static_cast<size_t>(i++)];
      const bool is_kernel = part.dim() == 2;
      arrays[fmt::format("{}MultiHeadDotProductAttention_0/{}/{}", block, name, kind)] =
          is_kernel ? part.t().reshape({kWidth, 1, kWidth}) : part.reshape({1, kWidth});
    }
  };
  for (const auto& [name, tensor] : test::by_name(model->visual->state())) {
    std::string rest = name.substr(std::string("trunk.").size());
    if (rest.starts_with("blocks.")) {
      const auto number = rest.substr(7, rest.find('.', 7) - 7);
      const auto part = rest.substr(8 + number.size());
      const auto block = fmt::format("{}Transformer/encoderblock_{}/", prefix, number);
      static const std::map<std::string, std::string> kParts{
          {"norm1.weight", "LayerNorm_0/scale"},           {"norm1.bias", "LayerNorm_0/bias"},
          {"norm2.weight", "LayerNorm_1/scale"},           {"norm2.bias", "LayerNorm_1/bias"},
          {"mlp.fc1.weight", "MlpBlock_0/Dense_0/kernel"}, {"mlp.fc1.bias", "MlpBlock_0/Dense_0/bias"},
          {"mlp.fc2.weight", "MlpBlock_0/Dense_1/kernel"}, {"mlp.fc2.bias", "MlpBlock_0/Dense_1/bias"}};
      if (part == "attn.qkv.weight") split(block, tensor, "kernel");
      if (part == "attn.qkv.bias") split(block, tensor, "bias");
      const auto out = block + "MultiHeadDotProductAttention_0/out/";
      if (part == "attn.proj.weight") arrays[out + "kernel"] = tensor.t().reshape({1, kWidth, kWidth});
      if (part == "attn.proj.bias") arrays[out + "bias"] = tensor;
      if (kParts.contains(part)) arrays[block + kParts.at(part)] = tensor.dim() == 2 ? tensor.t() : tensor;
    } else {
      static const std::map<std::string, std::string> kRest{{"cls_token", "cls"},
                                                            {"pos_embed", "Transformer/posembed_input/pos_embedding"},
                                                            {"patch_embed.proj.weight", "embedding/kernel"},
                                                            {"patch_embed.proj.bias", "embedding/bias"},
                                                            {"norm.weight", "Transformer/encoder_norm/scale"},
                                                            {"norm.bias", "Transformer/encoder_norm/bias"}};
      arrays[prefix + kRest.at(rest)] = tensor.dim() == 4 ? tensor.permute({2, 3, 1, 0}) : tensor;
    }
  }
  return arrays;
}

/// The same of the text tower, in flaxformer's names.
Arrays bert_arrays(const models::ClipModel& model) {
  Arrays arrays;
  const std::string layer = "BertEncoder_0/encoder_block/layer_sequence/layers_0/";
  const std::map<std::string, std::string> names{
      {"transformer.embeddings.word_embeddings", "BertEncoder_0/embedder/embedders_token_ids"},
      {"transformer.embeddings.position_embeddings", "BertEncoder_0/embedder/embedders_position_ids"},
      {"transformer.embeddings.token_type_embeddings", "BertEncoder_0/embedder/embedders_segment_ids"},
      {"transformer.embeddings.LayerNorm", "BertEncoder_0/layer_norm"},
      {"transformer.encoder.layer.0.attention.self.query", layer + "attention_block/attention_layer/query"},
      {"transformer.encoder.layer.0.attention.self.key", layer + "attention_block/attention_layer/key"},
      {"transformer.encoder.layer.0.attention.self.value", layer + "attention_block/attention_layer/value"},
      {"transformer.encoder.layer.0.attention.output.dense", layer + "attention_block/dense_layer"},
      {"transformer.encoder.layer.0.attention.output.LayerNorm", layer + "attention_block/layer_norm"},
      {"transformer.encoder.layer.0.intermediate.dense", layer + "mlp_block/mlp/dense_layer"},
      {"transformer.encoder.layer.0.output.dense", layer + "mlp_block/dense_layer"},
      {"transformer.encoder.layer.0.output.LayerNorm", layer + "mlp_block/layer_norm"},
      {"proj", "head"}};
  for (const auto& [name, tensor] : test::by_name(model->text->state())) {
    const auto dot = name.rfind('.');
    const auto& target = names.at(name.substr(0, dot));
    const bool is_table = name.find("_embeddings") != std::string::npos;
    const bool is_norm = name.find("LayerNorm") != std::string::npos;
    const bool is_weight = name.ends_with(".weight");
    const auto* leaf = !is_weight ? "bias" : is_table ? "embedding" : is_norm ? "scale" : "kernel";
    arrays[fmt::format("txt/{}/{}", target, leaf)] = is_weight && !is_table && !is_norm ? tensor.t() : tensor;
  }
  return arrays;
}

/// As numpy.savez writes fp32 arrays.
void write_npz(const fs::path& file, const Arrays& arrays) {
  std::vector<test::ZipEntry> entries;
  for (const auto& [name, tensor] : arrays) {
    const auto values = tensor.detach().to(at::kFloat).contiguous();
    std::string shape;
    for (const auto size : values.sizes()) shape += fmt::format("{}, ", size);
    auto header = fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", shape);
    header.resize((header.size() + 11) / 64 * 64 + 64 - 11, ' ');
    header += '\n';
    std::string data = "\x93NUMPY";
    data += std::string("\x01\x00", 2) + test::little_endian(header.size(), 2) + header;
    data.append(static_cast<const char*>(values.const_data_ptr()), static_cast<size_t>(values.nbytes()));
    entries.push_back({.name = name + ".npy", .data = data});
  }
  const auto bytes = test::zip_bytes(entries);
  std::ofstream(file, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

torch::Tensor images(int64_t size = 16) {
  at::manual_seed(3);
  return at::randn({2, 3, size, size});
}

class TowerSourceTest : public ::testing::Test {
 protected:
  TowerSourceTest() : model_(random_model(lit_config())) {
    write_npz(folder_ / "vit.npz", image_arrays(model_, ""));
    auto both = image_arrays(model_, "img/");
    both.merge(bert_arrays(model_));
    both["t"] = model_->logit_scale.reshape({1});
    write_npz(folder_ / "lit.npz", both);
    std::ofstream(folder_ / "lit.txt") << "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nred\ncat\n##s\n";
  }

  torch::Tensor expected_features() { return model_->visual->forward_features(images()); }

  torch::Tensor features_of(const ImageTowerSource& source) {
    models::ModelConfig config;
    config.vision_cfg = source.config;
    config.embed_dim = source.config.output_width();
    const auto tower = models::make_image_tower(config, torch::kCPU);
    tower->load_state(source.tensors);
    tower->eval();
    return tower->forward_features(images(source.config.image_size));
  }

  std::string error_of(const std::string& location, const std::optional<models::VisionConfig>& expected = {}) {
    return test::message_of([&] { open_image_tower(location, expected); });
  }

  const at::NoGradGuard no_grad_;
  test::TemporaryDirectory temporary_;
  const fs::path& folder_ = temporary_.path();
  models::ClipModel model_;
};

TEST_F(TowerSourceTest, EveryPlaceOfAnImageTowerGivesItsFeatures) {
  for (const std::string place : {"vit.npz", "lit.npz", "lit.npz:img"}) {
    const auto source = open_image_tower((folder_ / place).string());
    EXPECT_EQ(source.config.layers, std::vector<int64_t>{2}) << place;
    EXPECT_EQ(source.config.image_size, 16) << place;
    EXPECT_TRUE(source.config.gelu_tanh) << place;
    EXPECT_TRUE(test::tensors_near(place, features_of(source), expected_features(), {1e-6, 1e-6}));
    EXPECT_EQ(source.preprocess.mean[0], 0.5F);
    EXPECT_FALSE(source.preprocess.antialias);
    EXPECT_EQ(source.preprocess.resize_mode, image::ResizeMode::squash);
  }
}

TEST_F(TowerSourceTest, AFolderOfTheModelGivesTheSameTowerAndFingerprintAsGooglesFile) {
  write_checkpoint(folder_ / "out", CheckpointFormat::open_clip, open_checkpoint({.path = folder_ / "lit.npz"}));
  const auto from_folder = open_image_tower((folder_ / "out").string());
  EXPECT_TRUE(test::tensors_near("features", features_of(from_folder), expected_features(), {1e-6, 1e-6}));
  EXPECT_FALSE(from_folder.preprocess.antialias) << "the preprocessing is written with the model";
  const auto npz = open_image_tower((folder_ / "vit.npz").string());
  const auto fingerprint = [&](const ImageTowerSource& source) {
    auto config = lit_config();
    config.vision_cfg = source.config;
    return image_tower_fingerprint(config, source.tensors);
  };
  EXPECT_EQ(fingerprint(npz), fingerprint(from_folder));
  auto other = npz;
  other.tensors[3].load = [shape = other.tensors[3].shape] { return at::zeros(shape); };
  EXPECT_NE(fingerprint(other), fingerprint(npz));
  other = npz;
  other.config.gelu_tanh = false;
  EXPECT_NE(fingerprint(other), fingerprint(npz));
  other = npz;
  other.config.proj_type = "linear";
  EXPECT_EQ(fingerprint(other), fingerprint(npz)) << "features don't depend on the projection";
}

TEST_F(TowerSourceTest, ATextTowerComesFromGooglesFileAndFromTransformersFolder) {
  const auto google = open_text_tower((folder_ / "lit.npz").string());
  EXPECT_TRUE(google.config.is_bert());
  EXPECT_EQ(google.config.tokenizer_policy, "lit");
  const auto tokens = at::tensor({2, 5, 6, 7, 0, 0}, at::kLong).view({1, 6});
  const auto features_of_text = [&](const TextTowerSource& source) {
    auto config = lit_config();
    config.text_cfg = source.config;
    config.text_cfg.proj_type = "linear";
    config.text_cfg.proj_bias = true;
    const auto tower = models::make_text_tower(config, torch::kCPU);
    tower->load_state(source.tensors);
    return tower->forward_features(tokens);
  };
  const auto expected = model_->text->forward_features(tokens);
  EXPECT_TRUE(test::tensors_near("npz", features_of_text(google), expected, {1e-6, 1e-6}));

  fs::create_directories(folder_ / "bert");
  NamedTensors tensors;
  for (const auto& [name, tensor] : model_->text->state()) {
    if (name.starts_with("transformer.")) tensors.emplace_back("bert." + name.substr(12), tensor);
  }
  tensors.emplace_back("bert.pooler.dense.weight", at::zeros({kWidth, kWidth}));
  tensors.emplace_back("bert.pooler.dense.bias", at::zeros({kWidth}));
  write_safetensors(folder_ / "bert" / "model.safetensors", tensors);
  write_file_atomically(folder_ / "bert" / "config.json",
                        R"({"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
                            "intermediate_size": 128, "vocab_size": 9, "max_position_embeddings": 20,
                            "type_vocab_size": 2, "hidden_act": "gelu_new", "layer_norm_eps": 1e-12})");
  const auto folder = open_text_tower((folder_ / "bert").string());
  EXPECT_TRUE(test::tensors_near("transformers", features_of_text(folder), expected, {1e-6, 1e-6}));
  EXPECT_EQ(folder.folder, folder_ / "bert");
}

TEST_F(TowerSourceTest, AWholeLitModelOpensWithItsVocabularyBesideIt) {
  EncoderOptions options;
  options.normalize = false;
  const auto encoder = Encoder::open(folder_ / "lit.npz", options);
  EXPECT_EQ(encoder.embed_dim(), kWidth);
  EXPECT_NEAR(encoder.logit_scale(), 10, 1e-4);
  const std::vector<std::string> texts{"A red cats"};
  const auto ids = at::tensor({2, 5, 6, 7, 8}, at::kLong).view({1, 5});  // class token, pieces, no separator
  EXPECT_TRUE(test::tensors_near("text", encoder.encode_texts(texts), model_->encode_text(ids), {1e-6, 1e-6}));
}

TEST_F(TowerSourceTest, TimmsFolderTellsItsPreprocessing) {
  fs::create_directories(folder_ / "timm");
  NamedTensors tensors;
  for (const auto& [name, tensor] : model_->visual->state()) tensors.emplace_back(name.substr(6), tensor);
  tensors.emplace_back("head.weight", at::zeros({5, kWidth}));
  tensors.emplace_back("head.bias", at::zeros({5}));
  write_safetensors(folder_ / "timm" / "model.safetensors", tensors);
  const auto bare = open_image_tower((folder_ / "timm").string());
  EXPECT_NEAR(bare.preprocess.mean[0], 0.485, 1e-6);
  EXPECT_NEAR(bare.preprocess.crop_fraction, 0.875, 1e-9);
  write_file_atomically(folder_ / "timm" / "config.json",
                        R"({"architecture": "vit", "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
                            "interpolation": "bicubic", "crop_pct": 0.9, "input_size": [3, 16, 16]}})");
  const auto told = open_image_tower((folder_ / "timm").string(), lit_config().vision_cfg);
  EXPECT_EQ(told.preprocess.mean[0], 0.5F);
  EXPECT_NEAR(told.preprocess.crop_fraction, 0.9, 1e-9);
  EXPECT_TRUE(test::tensors_near("features", features_of(told), expected_features(), {1e-6, 1e-6}));
}

TEST_F(TowerSourceTest, AClipModelsFileKeepsClipsPreprocessingUnderANamedModelToo) {
  models::ModelConfig config;
  config.embed_dim = 12;
  config.vision_cfg = {.layers = {1}, .width = 64, .head_width = 64, .patch_size = 8, .image_size = 16};
  config.text_cfg = {.context_length = 6, .vocab_size = 13, .width = 64, .heads = 1, .layers = 1};
  fs::create_directories(folder_ / "clip");
  write_weights(folder_ / "clip" / "weights.safetensors", config, lazy(random_model(config)->state()));
  const auto source = open_image_tower((folder_ / "clip" / "weights.safetensors").string(), config.vision_cfg);
  EXPECT_NEAR(source.preprocess.mean[0], 0.48145466, 1e-6);
  image::PreprocessSpec own;
  own.mean = {0.1F, 0.2F, 0.3F};
  write_file_atomically(folder_ / "clip" / kConfigFile, open_clip_config(config, own));
  const auto beside = open_image_tower((folder_ / "clip" / "weights.safetensors").string(), config.vision_cfg);
  EXPECT_NEAR(beside.preprocess.mean[0], 0.1, 1e-6);
  const auto text = open_text_tower((folder_ / "clip" / "weights.safetensors").string());
  EXPECT_EQ(text.config, config.text_cfg);
  EXPECT_NE(error_of((folder_ / "clip" / "weights.safetensors").string() + ":img").find("img"), std::string::npos);
}

TEST_F(TowerSourceTest, ARunTakesItsModelAndPreprocessingFromItsTowers) {
  const auto file = folder_ / "run.yaml";
  const auto load = [&](const std::string& more) {
    write_file_atomically(file, fmt::format("name: a\nlock: LU\nimage: {{checkpoint: {0}/vit.npz}}\n"
                                            "text: {{checkpoint: {0}/lit.npz}}\ndata: {{train: synthetic}}\n"
                                            "train: {{steps: 5}}\n{1}",
                                            folder_.string(), more));
    const auto options = train::load_run_options(file.string(), {});
    return std::pair(models::load_model_config(options.model), options.preprocess);
  };
  const auto [as_wide, preprocess] = load("");
  EXPECT_EQ(as_wide.embed_dim, kWidth);
  EXPECT_FALSE(as_wide.vision_cfg.has_projection());
  EXPECT_EQ(as_wide.vision_cfg.image_size, 16);
  EXPECT_TRUE(as_wide.text_cfg.is_bert());
  EXPECT_TRUE(as_wide.text_cfg.proj_bias);
  ASSERT_NE(preprocess.find("antialias"), nullptr);
  const auto [projected, same] = load("model: {embed_dim: 24}\n");
  EXPECT_EQ(projected.embed_dim, 24);
  EXPECT_TRUE(projected.vision_cfg.has_projection());
  EXPECT_EQ(to_json(same), to_json(preprocess));
}

TEST_F(TowerSourceTest, PositionsFitAnotherImageSize) {
  auto larger = lit_config().vision_cfg;
  larger.image_size = 24;
  const auto source = open_image_tower((folder_ / "vit.npz").string(), larger);
  EXPECT_EQ(source.preprocess.size, 24);
  EXPECT_EQ(features_of(source).sizes(), at::IntArrayRef({2, kWidth}));
}

TEST_F(TowerSourceTest, WhatDoesNotFitIsAnErrorThatSaysWhy) {
  EXPECT_NE(error_of((folder_ / "nowhere.npz").string()).find("does not exist"), std::string::npos);
  EXPECT_NE(error_of((folder_ / "lit.npz:head").string()).find("head"), std::string::npos);
  auto pooled = lit_config().vision_cfg;
  pooled.pool_type = "avg";
  EXPECT_NE(error_of((folder_ / "vit.npz").string(), pooled).find("pooling tok, class token: true"), std::string::npos);
  const auto native = test::message_of(
      [&] { open_text_tower((folder_ / "lit.npz").string(), models::TextConfig{.context_length = 16}); });
  EXPECT_NE(native.find("the model's text tower is CLIP's own transformer"), std::string::npos) << native;
  const auto whole = test::message_of([&] { open_checkpoint({.path = folder_ / "vit.npz"}); });
  EXPECT_NE(whole.find("holds one tower, not a model: it can be image.checkpoint"), std::string::npos) << whole;
}

}  // namespace
}  // namespace contrastive::eval
