#include "contrastive/train/checkpoint.h"

#include <fstream>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/optim/adamw.h"

#include "tests/support/errors.h"
#include "tests/support/paths.h"

namespace contrastive::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kModel = R"({"embed_dim": 8,
  "vision_cfg": {"image_size": 32, "width": 8, "head_width": 32, "layers": [1, 1, 1, 1]},
  "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}})";

/// A model with an optimiser that has done one step.
struct Parts {
  explicit Parts(uint64_t seed)
      : model(models::load_model_config(parse_config(kModel, "test"))),
        optimizer(prepare(seed), {}, optim::open_clip_decays) {
    for (const auto& [name, parameter] : optimizer.parameters())
      parameter.mutable_grad() = at::full_like(parameter, 0.5);
    optimizer.step(1e-2);
  }

  NamedTensors prepare(uint64_t seed) {
    model->reset_parameters(at::make_generator<at::CPUGeneratorImpl>(seed));
    return model->named_trainable();
  }

  models::ClipModel model;
  optim::AdamW optimizer;
};

void expect_equal(const NamedTensors& a, const NamedTensors& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].first, b[i].first);
    EXPECT_TRUE(at::equal(a[i].second, b[i].second)) << a[i].first;
  }
}

RunState state_at(int64_t step) {
  RunState state;
  state.step = step;
  state.samples_seen = step * 8;
  state.seed = 5;
  state.skipped_samples = {{"truncated image", 3}};
  state.data_fingerprint = "data";
  state.config_hash = "config";
  return state;
}

TEST(CheckpointTest, LoadsBackModelOptimiserAndState) {
  const test::TemporaryDirectory run;
  const Parts saved(1);
  CheckpointStore store(run.path(), 3);
  EXPECT_FALSE(store.latest().has_value());
  store.save(checkpoint_content(state_at(12), saved.model, {}, saved.optimizer));
  ASSERT_TRUE(store.latest().has_value());
  EXPECT_EQ(store.latest()->filename(), "step_00000012");
  EXPECT_EQ(fs::read_symlink(run.path() / "checkpoints" / "latest"), "step_00000012");

  Parts loaded(2);
  const auto state = load_checkpoint(*store.latest(), loaded.model, loaded.optimizer);
  EXPECT_EQ(state.step, 12);
  EXPECT_EQ(state.samples_seen, 96);
  EXPECT_EQ(state.skipped_samples, state_at(12).skipped_samples);
  EXPECT_EQ(state.data_fingerprint, "data");
  expect_equal(saved.model->state(), loaded.model->state());
  expect_equal(saved.optimizer.state(), loaded.optimizer.state());
}

TEST(CheckpointTest, KeepsTheNewestAndRemovesLeftovers) {
  const test::TemporaryDirectory run;
  const Parts parts(1);
  fs::create_directories(run.path() / "checkpoints" / "step_00000001.partial-77");
  CheckpointStore store(run.path(), 2);
  for (const int64_t step : {3, 6, 9}) store.save(checkpoint_content(state_at(step), parts.model, {}, parts.optimizer));
  store.save(checkpoint_content(state_at(9), parts.model, {},
                                parts.optimizer));  // again, as after resuming from an earlier one
  std::vector<std::string> names;
  for (const auto& folder : store.list()) names.push_back(folder.filename());
  EXPECT_EQ(names, (std::vector<std::string>{"step_00000006", "step_00000009"}));
  int64_t entries = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(run.path() / "checkpoints")) ++entries;
  EXPECT_EQ(entries, 3) << "two checkpoints and the link";
}

TEST(CheckpointTest, NoticesAFlippedByteInAnyFile) {
  const test::TemporaryDirectory run;
  const Parts parts(1);
  CheckpointStore store(run.path(), 1);
  store.save(checkpoint_content(state_at(4), parts.model, {}, parts.optimizer));
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "open_clip_config.json"}) {
    const auto file = *store.latest() / name;
    const auto original = read_text_file(file);
    auto damaged = original;
    damaged[damaged.size() / 2] = static_cast<char>(damaged[damaged.size() / 2] ^ 1);
    write_file_atomically(file, damaged);
    const auto message = test::message_of<CheckpointError>([&] { verify_checkpoint(*store.latest()); });
    EXPECT_NE(message.find(name), std::string::npos) << message;
    EXPECT_NE(message.find("the file changed after it was written"), std::string::npos) << message;
    write_file_atomically(file, original);
  }
  EXPECT_EQ(verify_checkpoint(*store.latest()).step, 4);
  fs::remove(*store.latest() / "optimizer.safetensors");
  EXPECT_NE(test::message_of<CheckpointError>([&] {
              verify_checkpoint(*store.latest());
            }).find("optimizer.safetensors is missing"),
            std::string::npos);
}

TEST(CheckpointTest, RefusesADamagedStateFile) {
  const test::TemporaryDirectory run;
  const Parts parts(1);
  CheckpointStore store(run.path(), 1);
  store.save(checkpoint_content(state_at(4), parts.model, {}, parts.optimizer));
  const auto file = *store.latest() / "state.json";
  const auto text = read_text_file(file);
  for (size_t length = 0; length + 2 < text.size(); length += 37) {
    write_file_atomically(file, text.substr(0, length));
    EXPECT_NE(test::message_of<CheckpointError>([&] { verify_checkpoint(*store.latest()); }), "no error") << length;
  }
  EXPECT_NE(test::message_of<CheckpointError>([&] { verify_checkpoint(run.path() / "none"); }).find("is not a folder"),
            std::string::npos);
}

}  // namespace
}  // namespace contrastive::train
