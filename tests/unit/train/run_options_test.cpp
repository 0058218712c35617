#include "contrastive/train/run_options.h"

#include <fstream>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/models/model_config.h"

#include "tests/support/paths.h"

namespace contrastive::train {
namespace {

std::string write(const test::TemporaryDirectory& folder, const std::string& text) {
  const auto file = folder.path() / "run.yaml";
  std::ofstream(file) << text;
  return file.string();
}

std::string message_of(const std::string& file, const std::vector<std::string>& overrides = {}) {
  try {
    load_run_options(file, overrides);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

constexpr const char* kMinimal = "name: a\nmodel: ViT-B-32\ndata: {train: synthetic}\ntrain: {steps: 5}\n";

TEST(RunOptionsTest, ReportsEveryMistakeWithItsPlaceAtOnce) {
  const test::TemporaryDirectory folder;
  const auto file = write(folder,
                          "name: a\nmodel: ViT-B-32\ndata: {train: synthetic, workers: none}\n"
                          "optim:\n  warmup_stepz: 3\n  lr: -1\ntrain: {steps: 5, epochs: 2}\n");
  const auto message = message_of(file);
  EXPECT_NE(message.find(file + ":5:3: optim.warmup_stepz: unknown key (did you mean warmup_steps?)"),
            std::string::npos)
      << message;
  EXPECT_NE(message.find(file + ":6:7: optim.lr: -1 is out of range: must be greater than 0"), std::string::npos)
      << message;
  EXPECT_NE(message.find(":3:35: data.workers: expected an integer, found 'none'"), std::string::npos) << message;
  EXPECT_NE(message.find("train: give exactly one of steps, samples and epochs"), std::string::npos) << message;
}

TEST(RunOptionsTest, PrintsWhatRepeatsTheRun) {
  const test::TemporaryDirectory folder;
  const auto options = load_run_options(
      write(folder, kMinimal), {"optim.lr=1e-3", "optim.clip_norm=2", "name='17'", "preprocess.std=[1, 1, 1]"});
  const auto again_file = folder.path() / "again.yaml";
  write_file_atomically(again_file, to_yaml(options));
  const auto again = load_run_options(again_file.string(), {});
  EXPECT_EQ(to_yaml(again), to_yaml(options));
  EXPECT_EQ(again.name, "17");
  EXPECT_DOUBLE_EQ(again.optim.lr, 1e-3);
  EXPECT_EQ(again.model.kind, ConfigNode::Kind::map) << "the model must not depend on shipped files any more";
  const auto differences = compare(options, again);
  EXPECT_TRUE(differences.of_training.empty());
  EXPECT_TRUE(differences.of_bookkeeping.empty());
}

TEST(RunOptionsTest, TellsDifferencesThatMatterFromBookkeeping) {
  const test::TemporaryDirectory folder;
  const auto file = write(folder, kMinimal);
  const auto before = load_run_options(file, {});
  const auto now = load_run_options(file, {"optim.lr=0.25", "log.every_steps=3", "checkpoint.keep=9"});
  const auto differences = compare(before, now);
  ASSERT_EQ(differences.of_training.size(), 1U);
  EXPECT_EQ(differences.of_training[0], "optim.lr: 0.0005, now 0.25");
  EXPECT_EQ(differences.of_bookkeeping.size(), 2U);
}

/// A run configuration with this model.
std::string with_model(const std::string& model) {
  return "name: a\nmodel: " + model + "\ndata: {train: synthetic}\ntrain: {steps: 5}\n";
}

TEST(RunOptionsTest, AModelMayBeNamedAndChanged) {
  const test::TemporaryDirectory folder;
  const auto model_of = [&](const std::string& model, const std::vector<std::string>& overrides = {}) {
    return to_json(load_run_options(write(folder, with_model(model)), overrides).model);
  };
  const auto plain = models::model_config_from_file(find_resource("configs/models/ViT-B-32.json"));
  EXPECT_EQ(model_of("ViT-B-32"), to_json(models::to_node(plain)));
  EXPECT_EQ(model_of("{name: ViT-B-32}"), to_json(models::to_node(plain)));
  EXPECT_EQ(model_of("{name: " + find_resource("configs/models/ViT-B-32.json").string() + "}"), model_of("ViT-B-32"));

  auto changed = plain;
  changed.checkpoint_activations = true;
  changed.vision_cfg.patch_dropout = 0.5;
  const auto expected = to_json(models::to_full_node(changed));
  EXPECT_EQ(model_of("{name: ViT-B-32, checkpoint_activations: true, vision_cfg: {patch_dropout: 0.5}}"), expected);
  const std::vector<std::string> overrides{"model.checkpoint_activations=true", "model.vision_cfg.patch_dropout=0.5"};
  EXPECT_EQ(model_of("ViT-B-32", overrides), expected);
  EXPECT_EQ(model_of("{name: ViT-B-32, vision_cfg: {patch_dropout: 0.1}}", overrides), expected);
  EXPECT_EQ(model_of(to_json(models::to_node(plain), -1), overrides), expected);
  EXPECT_EQ(model_of("ViT-B-16", {"model=ViT-B-32", overrides[0], overrides[1]}), expected);
}

TEST(RunOptionsTest, TheModelOfWeightsMayBeChanged) {
  const test::TemporaryDirectory folder;
  const auto file = write(folder, "name: a\ndata: {train: synthetic}\ntrain: {steps: 5}\nweights: " +
                                      (test::own_fixtures_dir() / "hf" / "siglip").string() + "\n");
  const auto plain = load_run_options(file, {});
  const auto changed = load_run_options(file, {"model.checkpoint_activations=true"});
  const auto differences = compare(plain, changed);
  EXPECT_TRUE(differences.of_training.empty());
  EXPECT_EQ(differences.of_bookkeeping, std::vector<std::string>{"model.checkpoint_activations: absent, now true"});
}

TEST(RunOptionsTest, MistakesInAChangedModelHaveTheirPlace) {
  const test::TemporaryDirectory folder;
  const auto error_of = [&](const std::string& model, const std::vector<std::string>& overrides = {}) {
    return message_of(write(folder, with_model(model)), overrides);
  };
  const auto file = (folder.path() / "run.yaml").string();
  EXPECT_EQ(error_of("{name: ViT-B-23}"),
            file + ":2:15: model 'ViT-B-23' is neither a file nor a shipped config (did you mean ViT-B-32?)");
  EXPECT_EQ(error_of("{nmae: ViT-B-32}"), file + ":2:9: model.nmae: unknown key (did you mean name?)");
  EXPECT_EQ(error_of("{name: [1]}"), file + ":2:15: model.name: expected the name of a model or a file");
  EXPECT_EQ(error_of("{name: ViT-B-32, vision_cfg: {widht: 64, mlp_ratio: x}}"),
            file + ":2:60: vision_cfg.mlp_ratio: expected a number, found 'x'\n" + file +
                ":2:38: vision_cfg.widht: unknown key (did you mean width?)");
  EXPECT_EQ(error_of("ViT-B-32", {"model.checkpoint_activation=true"}),
            "override 'model.checkpoint_activation=true': checkpoint_activation: unknown key "
            "(did you mean checkpoint_activations?)");
  EXPECT_EQ(error_of("{checkpoint_activations: true}"),
            file + ":2:8: model: needs the name of the model that it changes, or embed_dim, vision_cfg and text_cfg");
}

TEST(RunOptionsTest, RefusesNamesThatArePaths) {
  const test::TemporaryDirectory folder;
  const auto file = write(folder, kMinimal);
  EXPECT_NE(message_of(file, {"name=../b"}).find("not a path"), std::string::npos);
  EXPECT_NE(message_of(file, {"name=''"}).find("not empty"), std::string::npos);
  EXPECT_NE(message_of(file, {"train.accumulate=3"}).find("train.accumulate: must divide global_batch"),
            std::string::npos);
  EXPECT_NE(message_of(file, {"data.crop.scale_min=0.95", "data.crop.scale_max=0.9"}).find("scale_min"),
            std::string::npos);
  EXPECT_NE(message_of(file, {"optim.schedule=constant_cooldown"}).find("cooldown_steps"), std::string::npos);
}

TEST(RunOptionsTest, LoadsEveryShippedConfigAndSaysWhatItReproduces) {
  const auto folder = find_resource("configs");
  int64_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".yaml") continue;
    const auto name = entry.path().filename().string();
    EXPECT_EQ(message_of(name), "no error") << name;
    const auto text = read_text_file(entry.path());
    EXPECT_TRUE(text.starts_with("# Reproduces: ")) << name;
    EXPECT_NE(text.find("\n# Expected: "), std::string::npos) << name;
    EXPECT_NE(text.find("\n# Needs: "), std::string::npos) << name;
    ++count;
  }
  EXPECT_GE(count, 2);
}

}  // namespace
}  // namespace contrastive::train
