#include "contrastive/eval/checkpoint_source.h"

#include <filesystem>
#include <fstream>
#include <string>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/log.h"
#include "contrastive/core/safetensors.h"
#include "contrastive/core/torch_file.h"
#include "contrastive/eval/checkpoint_writer.h"
#include "contrastive/eval/model_folder.h"
#include "contrastive/eval/preprocess_config.h"
#include "contrastive/models/text_transformer.h"
#include "contrastive/models/weight_names.h"

#include "tests/support/errors.h"
#include "tests/support/paths.h"
#include "tests/support/tensors.h"

namespace contrastive::eval {
namespace {

namespace fs = std::filesystem;

models::ModelConfig tiny(bool quick_gelu) {
  models::ModelConfig config;
  config.embed_dim = 32;
  config.quick_gelu = quick_gelu;
  config.vision_cfg = {.layers = {1}, .width = 64, .head_width = 64, .patch_size = 8, .image_size = 16};
  config.text_cfg = {.context_length = 6, .vocab_size = 13, .width = 64, .heads = 1, .layers = 1};
  return config;
}

NamedTensors state_of(const models::ModelConfig& config) {
  models::ClipModel model(config);
  model->reset_parameters(at::make_generator<at::CPUGeneratorImpl>(uint64_t{9}));
  return model->state();
}

void write_folder(const fs::path& folder, const models::ModelConfig& config, const NamedTensors& state) {
  fs::create_directories(folder);
  write_file_atomically(folder / kConfigFile, open_clip_config(config, {}));
  write_weights(folder / kWeightsFile, config, lazy(state));
}

class CheckpointSourceTest : public ::testing::Test {
 protected:
  test::TemporaryDirectory temporary_;
  const fs::path& folder_ = temporary_.path();
};

TEST_F(CheckpointSourceTest, EveryFormatComesBackBitForBit) {
  const auto config = tiny(/*quick_gelu=*/true);
  auto state = state_of(config);
  // Values that fp16 holds, so that OpenAI's format loses none.
  for (auto& [name, tensor] : state) tensor = tensor.to(at::kHalf).to(at::kFloat);
  write_folder(folder_ / "a", config, state);
  auto from = folder_ / "a";
  for (const auto& [format, target] : {std::pair(CheckpointFormat::hf, "hf"),
                                       {CheckpointFormat::openai, "openai.pt"},
                                       {CheckpointFormat::open_clip, "b"}}) {
    write_checkpoint(folder_ / target, format, open_checkpoint({.path = from}));
    from = folder_ / target;
    const auto source = open_checkpoint({.path = from});
    EXPECT_EQ(source.config, config) << target;
    const auto complete = models::complete_state(config, source.tensors);
    ASSERT_EQ(complete.tensors.size(), state.size()) << target;
    for (size_t i = 0; i < state.size(); ++i) {
      EXPECT_EQ(complete.tensors[i].name, state[i].first) << target;
      EXPECT_TRUE(test::tensors_equal(state[i].first, complete.tensors[i].load().to(at::kFloat), state[i].second));
    }
  }
}

TEST_F(CheckpointSourceTest, ATransformersSiglipFolderInShardsGivesItsFeatures) {
  const auto folder = test::own_fixtures_dir() / "hf" / "siglip";
  const auto io = test::by_name(SafetensorsFile(folder / "io.safetensors").tensors());
  auto loaded = load_model(folder);
  EXPECT_EQ(loaded.preprocess.resize_mode, image::ResizeMode::squash);
  EXPECT_EQ(loaded.preprocess.mean[0], 0.5F);
  const at::NoGradGuard no_grad;
  const auto output = loaded.model->forward(io.at("images"), io.at("tokens"));
  const test::Tolerance tolerance{1e-5, 1e-5};
  EXPECT_TRUE(test::tensors_near("image_features", loaded.model->encode_image(io.at("images")), io.at("image_features"),
                                 tolerance));
  EXPECT_TRUE(test::tensors_near("text_features", loaded.model->encode_text(io.at("tokens")), io.at("text_features"),
                                 tolerance));
  const auto logits = output.logit_scale * output.image_features.mm(output.text_features.t()) + output.logit_bias;
  EXPECT_TRUE(test::tensors_near("logits_per_image", logits, io.at("logits_per_image"), {1e-4, 1e-5}));
}

TEST_F(CheckpointSourceTest, ASiglipModelSurvivesAnOpenClipFolder) {
  const auto source = open_checkpoint({.path = test::own_fixtures_dir() / "hf" / "siglip"});
  write_checkpoint(folder_ / "out", CheckpointFormat::open_clip, source);
  EXPECT_EQ(open_checkpoint({.path = folder_ / "out"}).config, source.config);
  EXPECT_NE(test::message_of([&] {
              write_checkpoint(folder_ / "hf", CheckpointFormat::hf, source);
            }).find("an image tower of timm's"),
            std::string::npos);
  EXPECT_FALSE(fs::exists(folder_ / "hf"));
}

TEST_F(CheckpointSourceTest, AnotherImageSizeAndContextLengthResizeThePositions) {
  write_folder(folder_, tiny(false), state_of(tiny(false)));
  auto loaded = load_model({.path = folder_, .image_size = 32, .context_length = 9});
  EXPECT_EQ(loaded.model->config().vision_cfg.image_size, 32);
  EXPECT_EQ(loaded.preprocess.size, 32);
  EXPECT_EQ(loaded.model->encode_image(at::zeros({1, 3, 32, 32})).size(1), 32);
  EXPECT_EQ(loaded.model->text->as<models::TextTransformerImpl>()->positional_embedding.size(0), 9);
}

TEST_F(CheckpointSourceTest, AConfigThatContradictsTheRecordedActivationIsAnError) {
  write_folder(folder_, tiny(true), state_of(tiny(true)));
  write_file_atomically(folder_ / kConfigFile, open_clip_config(tiny(false), {}));
  const auto message = test::message_of([&] { open_checkpoint({.path = folder_}); });
  EXPECT_NE(message.find("was trained with QuickGELU (by its header), but the config beside it says quick_gelu: false"),
            std::string::npos)
      << message;
}

TEST_F(CheckpointSourceTest, OpenAiWeightsUnderAModelWithTheOtherActivationAreAnError) {
  const auto config = tiny(true);
  write_torch_file(folder_ / "weights.pt", models::to_openai_weights(lazy(state_of(config)), config));
  const auto message =
      test::message_of([&] { open_checkpoint({.path = folder_ / "weights.pt", .config = tiny(false)}); });
  EXPECT_NE(message.find("was trained with QuickGELU (by OpenAI's format)"), std::string::npos) << message;
  EXPECT_NO_THROW(open_checkpoint({.path = folder_ / "weights.pt", .config = config}));
}

TEST_F(CheckpointSourceTest, TheNamesOfPublishedWeightsDecideAndUnknownOnesGiveAWarning) {
  const auto state = state_of(tiny(true));
  std::string warnings;
  set_log_sink([&](LogLevel level, std::string_view text) {
    if (level == LogLevel::warning) warnings += text;
  });
  write_safetensors(folder_ / "metaclip_400m.safetensors", state);
  EXPECT_NE(test::message_of([&] {
              open_checkpoint({.path = folder_ / "metaclip_400m.safetensors", .config = tiny(false)});
            }).find("(by its name ('metaclip'))"),
            std::string::npos);
  EXPECT_EQ(warnings, "");
  write_safetensors(folder_ / "mine.safetensors", state);
  open_checkpoint({.path = folder_ / "mine.safetensors", .config = tiny(false)});
  EXPECT_NE(warnings.find("does not say which GELU it was trained with"), std::string::npos) << warnings;
  set_log_sink({});
}

TEST_F(CheckpointSourceTest, MissingTensorsMayBeAllowedByName) {
  const auto config = tiny(false);
  auto state = state_of(config);
  state.pop_back();
  const auto missing = state_of(config).back().first;
  write_folder(folder_, config, state);
  EXPECT_NE(test::message_of([&] { load_model(folder_); }).find(missing + ": missing"), std::string::npos);
  const auto loaded = load_model({.path = folder_}, [&](const std::string& name) { return name == missing; });
  for (const auto& [name, tensor] : loaded.model->state()) EXPECT_TRUE(tensor.isfinite().all().item<bool>()) << name;
}

TEST_F(CheckpointSourceTest, AnIndexCantReachOutOfItsFolder) {
  fs::copy(test::own_fixtures_dir() / "hf" / "siglip" / "config.json", folder_ / "config.json");
  std::ofstream(folder_ / "model.safetensors.index.json")
      << R"({"weight_map": {"logit_scale": "../secret.safetensors"}})";
  EXPECT_NE(test::message_of([&] { open_checkpoint({.path = folder_}); }).find("which is not a file beside it"),
            std::string::npos);
}

TEST_F(CheckpointSourceTest, WeightsAloneMustNameTheirModel) {
  write_safetensors(folder_ / "w.safetensors", state_of(tiny(false)));
  EXPECT_NE(test::message_of([&] {
              open_checkpoint({.path = folder_ / "w.safetensors"});
            }).find("name it (--model ViT-B-32)"),
            std::string::npos);
}

TEST(HfPreprocessTest, WritesWhatItReadsAndRefusesOtherSizes) {
  image::PreprocessSpec spec;
  spec.size = 32;
  spec.mean = {0.5F, 0.25F, 0.125F};
  spec.interpolation = image::Interpolation::bilinear;
  for (const auto mode : {image::ResizeMode::shortest, image::ResizeMode::squash}) {
    spec.resize_mode = mode;
    const auto read = load_hf_preprocess(parse_config(to_json(to_hf_preprocess(spec)), "test"), 32);
    EXPECT_EQ(read.mean, spec.mean);
    EXPECT_EQ(read.std, spec.std);
    EXPECT_EQ(read.interpolation, spec.interpolation);
    EXPECT_EQ(read.resize_mode, mode);
  }
  EXPECT_NE(test::message_of([&] {
              load_hf_preprocess(parse_config("{size: {shortest_edge: 36}, crop_size: 32}", "test"), 32);
            }).find("size: expected the shorter edge and a centre crop"),
            std::string::npos);
  EXPECT_NE(test::message_of([&] { load_hf_preprocess(parse_config("{resample: 1}", "test"), 32); }).find("resample"),
            std::string::npos);
}

}  // namespace
}  // namespace contrastive::eval
