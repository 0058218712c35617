#include "contrastive/eval/zero_shot.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/data/synthetic.h"

#include "tests/support/errors.h"

namespace contrastive::eval {
namespace {

TEST(AveragePromptsTest, NormalisesEachPromptBeforeTheMeanAndTheMeanAfterwards) {
  // Two templates of one class: (3, 0) and (0, 0.5); lengths must not weigh.
  const auto features = at::tensor({3.0F, 0.0F, 0.0F, 0.5F}).view({1, 2, 2});
  const auto averaged = average_prompts(features);
  const auto half = std::sqrt(0.5F);
  EXPECT_NEAR(averaged[0][0].item<float>(), half, 1e-6);
  EXPECT_NEAR(averaged[0][1].item<float>(), half, 1e-6);
}

/// Remembers what it is given; one id for every text.
class RecordingTokenizer : public text::Tokenizer {
 public:
  int64_t tokenize(std::string_view text, std::span<int32_t> row, bool) const override {
    texts.emplace_back(text);
    row[0] = 1;
    return 1;
  }
  std::vector<int32_t> encode(std::string_view) const override { return {1}; }
  std::string decode(std::span<const int32_t>) const override { return {}; }
  int64_t vocab_size() const override { return 2; }

  mutable std::vector<std::string> texts;
};

models::ClipModel tiny_model() {
  models::ModelConfig config;
  config.embed_dim = 8;
  config.vision_cfg.layers = {1};
  config.vision_cfg.width = 16;
  config.vision_cfg.head_width = 8;
  config.vision_cfg.patch_size = 8;
  config.vision_cfg.image_size = 16;
  config.text_cfg.layers = 1;
  config.text_cfg.width = 8;
  config.text_cfg.heads = 1;
  config.text_cfg.vocab_size = 2;
  models::ClipModel model(config);
  model->reset_parameters(at::detail::createCPUGenerator(1));
  return model;
}

std::vector<std::string> texts_of(const ZeroShotOptions& options) {
  auto model = tiny_model();
  image::PreprocessSpec preprocess;
  preprocess.size = 16;
  auto set = data::synthetic_classification({.samples = 3, .image_size = 16});
  std::fill(set.class_names.begin(), set.class_names.end(), "red_circle, disc");
  set.templates = {"A photo of a {c}!"};
  const RecordingTokenizer tokenizer;
  evaluate_zero_shot(model, preprocess, tokenizer, set, options);
  std::sort(tokenizer.texts.begin(), tokenizer.texts.end());
  tokenizer.texts.erase(std::unique(tokenizer.texts.begin(), tokenizer.texts.end()), tokenizer.texts.end());
  return tokenizer.texts;
}

TEST(EvaluateZeroShotTest, TextsAreTheSetsOwnUnlessTheOptionsSayOtherwise) {
  using Texts = std::vector<std::string>;
  EXPECT_EQ(texts_of({}), Texts{"A photo of a red_circle, disc!"});
  EXPECT_EQ(texts_of({.canonicalize = true}), Texts{"a photo of a red circle"});
  EXPECT_EQ(texts_of({.prompts = "class_name"}), Texts{"red_circle, disc"});
  const auto best = texts_of({.prompts = "clip_best", .canonicalize = true});
  EXPECT_EQ(best.size(), 8U);
  EXPECT_NE(std::find(best.begin(), best.end(), "itap of a red circle"), best.end());
  EXPECT_NE(test::message_of<ConfigError>([] { texts_of({.prompts = "none"}); }).find("there is no set"),
            std::string::npos);
}

}  // namespace
}  // namespace contrastive::eval
