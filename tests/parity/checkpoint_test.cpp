// Against files written by torch 2.11, OpenAI's layout and transformers 4.57; names, sizes and settings come from the
// files. Tolerances are those of the fixtures' README.

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "contrastive/core/safetensors.h"
#include "contrastive/core/torch_file.h"
#include "contrastive/eval/checkpoint_source.h"
#include "contrastive/eval/model_folder.h"
#include "contrastive/loss/contrastive_loss.h"
#include "contrastive/models/weight_names.h"
#include "contrastive/optim/adamw.h"
#include "contrastive/optim/torch_state.h"

#include "tests/support/paths.h"
#include "tests/support/tensors.h"

namespace contrastive {
namespace {

namespace fs = std::filesystem;
constexpr test::Tolerance kForward{1e-5, 1e-5};

using Tensors = std::map<std::string, torch::Tensor>;

Tensors tensors_of(const fs::path& file) {
  return test::by_name(SafetensorsFile(file).tensors());
}

class CheckpointParityTest : public ::testing::Test {
 protected:
  void SetUp() override {
    at::set_num_threads(1);
    const auto fixtures = test::fixtures_dir();
    if (!fixtures) GTEST_SKIP() << "no parity fixtures (CONTRASTIVE_FIXTURES)";
    openai_ = *fixtures / "openai";
    hf_ = *fixtures / "hf" / "clip";
  }

  fs::path openai_, hf_;
};

void expect_outputs(models::ClipModel& model, const Tensors& io) {
  const at::NoGradGuard no_grad;
  const auto image = model->encode_image(io.at("images")), text = model->encode_text(io.at("tokens"));
  EXPECT_TRUE(test::tensors_near("image_features", image, io.at("image_features"), kForward));
  EXPECT_TRUE(test::tensors_near("text_features", text, io.at("text_features"), kForward));
  const auto output = model->forward(io.at("images"), io.at("tokens"));
  const auto logits = output.logit_scale * output.image_features.mm(output.text_features.t());
  const double scale = output.logit_scale.item<double>();
  EXPECT_TRUE(test::tensors_near("logits_per_image", logits, io.at("logits_per_image"), {1e-5 * (1 + scale), 0}));
}

TEST_F(CheckpointParityTest, OpenAiFilesTellTheirConfigAndGiveTheReferencesFeatures) {
  const auto expected = models::model_config_from_file(openai_ / "expected_config.json");
  const auto io = tensors_of(openai_ / "io.safetensors");
  for (const char* name : {"model_jit.pt", "model_state.pt"}) {
    SCOPED_TRACE(name);
    const auto source = eval::open_checkpoint({.path = openai_ / name, .model = ""});
    EXPECT_EQ(source.config, expected);
    auto loaded = eval::load_model(openai_ / name);
    expect_outputs(loaded.model, io);
  }
}

TEST_F(CheckpointParityTest, OpenAiWeightsGoBackInTheDtypesTheyCameIn) {
  const auto dtypes = load_config(openai_ / "dtypes.json");
  const auto source = eval::open_checkpoint({.path = openai_ / "model_state.pt", .model = ""});
  const auto written = models::to_openai_weights(source.tensors, source.config);
  std::map<std::string, std::string> names{{"Float", "float32"}, {"Half", "float16"}, {"Long", "int64"}};
  size_t sizes = 0;  // the three entries that are no weights
  for (const auto& entry : dtypes.entries) {
    const bool is_size = entry.key == "input_resolution" || entry.key == "context_length" || entry.key == "vocab_size";
    sizes += is_size ? 1 : 0;
    if (is_size) continue;
    const auto found = std::find_if(written.begin(), written.end(), [&](const auto& t) { return t.name == entry.key; });
    ASSERT_NE(found, written.end()) << entry.key;
    EXPECT_EQ(names.at(c10::toString(found->dtype)), entry.value.scalar) << entry.key;
  }
  EXPECT_EQ(written.size() + sizes, dtypes.entries.size());
}

TEST_F(CheckpointParityTest, ATrainingCheckpointOfOpenClipEvaluatesAndTrainsOnAsThere) {
  const auto checkpoint = test::only_file(openai_, "epoch_", ".pt");
  const auto stem = (openai_ / checkpoint.stem()).string();
  const auto io = tensors_of(stem + "_io.safetensors");
  auto loaded = eval::load_model({.path = checkpoint, .model = stem + "_config.json"});
  expect_outputs(loaded.model, io);

  const TorchFile file(checkpoint);
  loaded.model->train();
  const auto parameters = loaded.model->named_trainable();
  const auto settings = optim::torch_adamw_settings(file);
  optim::AdamW optimizer(parameters, settings.options, optim::open_clip_decays);
  optimizer.load_state(optim::adamw_state_from_torch(file, parameters, optim::open_clip_decays));
  std::vector<torch::Tensor> losses;
  for (int64_t step = 0; step < io.at("resume.losses").size(0); ++step) {
    const auto output = loaded.model->forward(io.at("resume.images")[step], io.at("resume.tokens")[step]);
    losses.push_back(loss::contrastive_loss(output.image_features, output.text_features, output.logit_scale).loss);
    optimizer.zero_grad();
    losses.back().backward();
    optimizer.step(settings.lr);
    loaded.model->clamp_logit_scale();
  }
  EXPECT_TRUE(test::tensors_near("resume.losses", at::stack(losses), io.at("resume.losses"), {2e-5, 0}));
  for (const auto& [name, tensor] : loaded.model->state()) {
    if (name.ends_with("in_proj_bias")) continue;  // its key part has no true gradient: Adam moves it by rounding noise
    EXPECT_TRUE(test::tensors_near(name, tensor, io.at("resume.final." + name), {1e-4, 0}));
  }
}

TEST_F(CheckpointParityTest, ATransformersFolderGivesTheFeaturesOfTransformers) {
  auto io = tensors_of(hf_ / "io.safetensors");
  auto loaded = eval::load_model(hf_);
  const at::NoGradGuard no_grad;
  const auto image = loaded.model->encode_image(io.at("pixel_values"));
  const auto text = loaded.model->encode_text(io.at("input_ids"));
  EXPECT_TRUE(test::tensors_near("image_features", image, io.at("image_features"), kForward));
  EXPECT_TRUE(test::tensors_near("text_features", text, io.at("text_features"), kForward));
  EXPECT_TRUE(test::tensors_near("image_embeds", models::l2_normalize(image), io.at("image_embeds"), kForward));
  EXPECT_TRUE(test::tensors_near("text_embeds", models::l2_normalize(text), io.at("text_embeds"), kForward));
  const auto logits = loaded.model->logit_scale.exp() * models::l2_normalize(image).mm(models::l2_normalize(text).t());
  EXPECT_TRUE(test::tensors_near("logits_per_image", logits, io.at("logits_per_image"), {1e-4, 1e-5}));
}

TEST_F(CheckpointParityTest, TransformersTensorsComeBackBitForBit) {
  const auto source = eval::open_checkpoint({.path = hf_, .model = ""});
  const auto original = tensors_of(hf_ / "model.safetensors");
  const auto back = models::to_hf_clip_names(source.tensors, source.config);
  EXPECT_EQ(back.size(), original.size());
  for (const auto& tensor : back) {
    ASSERT_TRUE(original.contains(tensor.name)) << tensor.name;
    EXPECT_TRUE(test::tensors_equal(tensor.name, tensor.load(), original.at(tensor.name)));
  }
}

}  // namespace
}  // namespace contrastive
