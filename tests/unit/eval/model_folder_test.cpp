#include "contrastive/eval/model_folder.h"

#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/safetensors.h"
#include "contrastive/eval/preprocess_config.h"

#include "tests/support/errors.h"
#include "tests/support/paths.h"

namespace contrastive::eval {
namespace {

constexpr const char* kModel = R"({"embed_dim": 8,
  "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1},
  "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}})";

models::ClipModel make_model() {
  models::ClipModel model(models::load_model_config(parse_config(kModel, "test")));
  model->reset_parameters(at::make_generator<at::CPUGeneratorImpl>(uint64_t{3}));
  return model;
}

TEST(ModelFolderTest, LoadsBackWhatWasWrittenWithItsPreprocessing) {
  const test::TemporaryDirectory folder;
  const auto model = make_model();
  image::PreprocessSpec preprocess;
  preprocess.size = 16;
  preprocess.mean = {0.5F, 0.25F, 0.125F};
  preprocess.resize_mode = image::ResizeMode::squash;
  preprocess.interpolation = image::Interpolation::bilinear;
  write_file_atomically(folder.path() / kConfigFile, open_clip_config(model->config(), preprocess));
  write_safetensors(folder.path() / kWeightsFile, model->state());

  for (const auto& path : {folder.path(), folder.path() / kWeightsFile}) {
    const auto loaded = load_model(path);
    EXPECT_EQ(loaded.preprocess.size, 16);
    EXPECT_EQ(loaded.preprocess.mean, preprocess.mean);
    EXPECT_EQ(loaded.preprocess.std, preprocess.std);
    EXPECT_EQ(loaded.preprocess.resize_mode, preprocess.resize_mode);
    EXPECT_EQ(loaded.preprocess.interpolation, preprocess.interpolation);
    EXPECT_FALSE(loaded.model->is_training());
    const auto before = model->state();
    const auto after = loaded.model->state();
    ASSERT_EQ(before.size(), after.size());
    for (size_t i = 0; i < before.size(); ++i) {
      EXPECT_EQ(before[i].first, after[i].first);
      EXPECT_TRUE(at::equal(before[i].second, after[i].second)) << before[i].first;
    }
  }
}

TEST(ModelFolderTest, NamesWhatIsMissing) {
  const test::TemporaryDirectory folder;
  EXPECT_NE(test::message_of([&] { load_model(folder.path() / "none"); }).find("does not exist"), std::string::npos);
  EXPECT_NE(test::message_of([&] { load_model(folder.path()); }).find("has no open_clip_config.json"),
            std::string::npos);
  write_file_atomically(folder.path() / kConfigFile, open_clip_config(make_model()->config(), {}));
  EXPECT_NE(test::message_of([&] { load_model(folder.path()); }).find("model.safetensors"), std::string::npos);
}

TEST(ModelFolderTest, RefusesWeightsOfAnotherModel) {
  const test::TemporaryDirectory folder;
  const auto model = make_model();
  write_file_atomically(folder.path() / kConfigFile, open_clip_config(model->config(), {}));
  auto tensors = model->state();
  tensors.pop_back();
  const auto missing = model->state().back().first;
  write_safetensors(folder.path() / kWeightsFile, tensors);
  const auto message = test::message_of([&] { load_model(folder.path()); });
  EXPECT_NE(message.find("does not fit its model config"), std::string::npos) << message;
  EXPECT_NE(message.find(missing), std::string::npos) << message;
}

TEST(ModelFolderTest, ReadsThePreprocessingThatPublishedFoldersHave) {
  const auto spec =
      load_preprocess(parse_config(R"({"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic",
                       "resize_mode": "squash", "size": [224, 224], "mode": "RGB", "fill_color": 0})",
                                   "test"),
                      224);
  EXPECT_EQ(spec.size, 224);
  EXPECT_FLOAT_EQ(spec.std[2], 0.5F);
  EXPECT_EQ(spec.resize_mode, image::ResizeMode::squash);
  EXPECT_THROW(load_preprocess(parse_config("{std: [0, 1, 1]}", "test"), 224), ConfigError);
  EXPECT_THROW(load_preprocess(parse_config("{interpolation: lanczos}", "test"), 224), ConfigError);
}

TEST(ModelFolderTest, FindsShippedConfigsAndSuggestsNames) {
  EXPECT_EQ(find_model_config("ViT-B-32").filename(), "ViT-B-32.json");
  const auto message = test::message_of([] { find_model_config("ViT-B-23"); });
  EXPECT_NE(message.find("did you mean ViT-B-32?"), std::string::npos) << message;
}

}  // namespace
}  // namespace contrastive::eval
