#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/models/model_config.h"
#include "contrastive/train/run_options.h"
#include "contrastive/train/training_data.h"

#include "tests/support/errors.h"
#include "tests/support/paths.h"

namespace contrastive::train {
namespace {

class LitOptionsTest : public ::testing::Test {
 protected:
  RunOptions load(const std::string& text, const std::vector<std::string>& overrides = {}) {
    const auto file = folder_.path() / "run.yaml";
    std::ofstream(file) << "name: a\nmodel: ViT-B-32\ndata: {train: synthetic}\ntrain: {steps: 50}\n" << text;
    return load_run_options(file.string(), overrides);
  }
  std::string error_of(const std::string& text) {
    return test::message_of([&] { load(text); });
  }
  void expect_error(const std::string& text, const std::string& part) {
    EXPECT_NE(error_of(text).find(part), std::string::npos) << "no '" << part << "' in: " << error_of(text);
  }

  test::TemporaryDirectory folder_;
};

TEST_F(LitOptionsTest, LettersMustFitTheCheckpointsThatAreGiven) {
  expect_error("lock: Lu\n", "image.checkpoint: letter L in lock starts the image tower from a checkpoint");
  expect_error("lock: uU\n", "text.checkpoint: letter U in lock starts the text tower from a checkpoint");
  expect_error("lock: uu\nimage: {checkpoint: x.npz}\npreprocess: {std: [1, 1, 1]}\n",
               "image.checkpoint: letter u in lock starts the image tower from random weights");
  expect_error("lock: lu\n", "lock: 'lu' is not one of");
  EXPECT_TRUE(load("lock: LU\nweights: x\n").locks_image());
}

TEST_F(LitOptionsTest, SettingsOfLockedTowersNeedOne) {
  expect_error("image: {unlocked_groups: 2}\n", "image.unlocked_groups: has a meaning only for a locked tower");
  expect_error("text: {unlock_at: 3 epochs}\n", "text.unlock_at: has a meaning only for a locked tower");
  expect_error("lock: Uu\nweights: x\nimage: {lock_head: true}\n", "image.lock_head: has a meaning only");
  expect_error("lock: Lu\nweights: x\nimage: {batch_size: 8, unlocked_groups: 1}\n", "image.batch_size: has a meaning");
  expect_error("lock: Lu\nweights: x\nimage: {cache: c, unlocked_groups: 1}\n",
               "image.cache: needs an image tower that stays locked");
  expect_error("lock: Uu\nweights: x\nimage: {cache: c}\n", "image.cache: needs an image tower that stays locked");
  expect_error("lock: LL\nweights: x\nimage: {lock_head: true}\ntext: {lock_head: true}\n", "leaves nothing to train");
}

TEST_F(LitOptionsTest, ErrorsStandAtTheirNestedKey) {
  expect_error("lock: Lu\nimage:\n  cache: c\n  checkpoint: ''\n", "run.yaml:8:15: image.checkpoint: letter L");
}

TEST_F(LitOptionsTest, ATowersOptionsSurviveBeingPrinted) {
  const auto options = load(
      "lock: Lu\nimage: {checkpoint: 'a.npz:img', unlocked_groups: 2, unlock_at: 5 epochs}\n"
      "preprocess: {antialias: false, interpolation: bilinear, resize_mode: squash}\n"
      "optim: {name: adafactor, rules: [{match: 'visual\\..*', lr: 0.1, unlock_at: 3 %}, {match: logit_scale, decay: "
      "0}],\n"
      "  adafactor: {momentum: null}, warmup: 1e5 samples}\nwhere_to_get: {image.checkpoint: there}\n");
  const auto file = folder_.path() / "again.yaml";
  std::ofstream(file) << to_yaml(options);
  const auto again = load_run_options(file.string(), {});
  EXPECT_EQ(to_yaml(again), to_yaml(options));
  ASSERT_EQ(again.optim.rules.size(), 2U);
  EXPECT_EQ(again.optim.rules[0].unlock_at, "3 %");
  EXPECT_FALSE(again.optim.adafactor.momentum.has_value());
}

TEST_F(LitOptionsTest, EverythingThatIsMissingIsNamedAtOnceWithItsSource) {
  const auto options = load(
      "lock: LU\nimage: {checkpoint: t.npz, cache: made}\ntext: {checkpoint: bert}\npreprocess: {std: [1, 1, 1]}\n"
      "eval: {zero_shot: {data: imagenet}}\nwhere_to_get: {text.checkpoint: 'from the hub'}\n");
  const auto message = test::message_of([&] { require_inputs(options); });
  for (const char* part : {"image.checkpoint: t.npz", "text.checkpoint: bert\n    from the hub", "image.cache: made",
                           "eval.zero_shot.data: imagenet"}) {
    EXPECT_NE(message.find(part), std::string::npos) << "no '" << part << "' in: " << message;
  }
  const auto resumed = test::message_of([&] { require_inputs(options, /*resumes=*/true); });
  EXPECT_EQ(resumed.find("text.checkpoint"), std::string::npos) << "a run that goes on has its weights: " << resumed;
  EXPECT_NE(resumed.find("image.checkpoint"), std::string::npos) << "checkpoints of a cached run need the tower";
}

}  // namespace
}  // namespace contrastive::train
