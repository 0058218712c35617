#include "contrastive/train/checkpoint_saver.h"

#include <fstream>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/optim/adamw.h"
#include "contrastive/optim/parameter_shards.h"

#include "tests/support/errors.h"
#include "tests/support/paths.h"
#include "tests/support/ranks.h"
#include "tests/support/tensors.h"

namespace contrastive::train {
namespace {

namespace fs = std::filesystem;
using distributed::ProcessGroup;

constexpr const char* kModel = R"({"embed_dim": 8,
  "vision_cfg": {"image_size": 32, "width": 8, "head_width": 32, "layers": [1, 1, 1, 1]},
  "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}})";

/// A model with an optimiser that has done one step.
struct Parts {
  Parts(uint64_t seed, const ProcessGroup& group, bool sharded)
      : model(models::load_model_config(parse_config(kModel, "test"))),
        shards(prepare(seed), group, sharded),
        optimizer(shards.owned(), {}, optim::open_clip_decays) {
    for (const auto& [name, parameter] : optimizer.parameters()) {
      parameter.mutable_grad() = at::full_like(parameter, 0.5);
    }
    optimizer.step(1e-2);
    shards.exchange();
  }

  NamedTensors prepare(uint64_t seed) {
    model->reset_parameters(at::make_generator<at::CPUGeneratorImpl>(seed));
    return model->named_trainable();
  }

  CheckpointContent content(int64_t step) const {
    RunState state;
    state.step = step;
    return checkpoint_content(state, model, {}, optimizer);
  }

  models::ClipModel model;
  optim::ParameterShards shards;
  optim::AdamW optimizer;
};

void expect_same(const NamedTensors& actual, const NamedTensors& expected) {
  const auto by_name = test::by_name(expected);
  for (const auto& [name, tensor] : actual) EXPECT_TRUE(tensor.equal(by_name.at(name))) << name;
}

TEST(CheckpointSaverTest, WritesTheValuesOfTheMomentItWasStarted) {
  const test::TemporaryDirectory run;
  Parts parts(1, {}, false);
  CheckpointSaver saver(run.path(), {}, {});
  const auto weights = parts.model->visual->named_parameters()["conv1.weight"].detach().clone();
  saver.start(parts.content(3));
  {
    const at::NoGradGuard no_grad;
    for (auto& [name, parameter] : parts.model->named_trainable()) parameter.zero_();
  }
  const auto saved = saver.wait();
  ASSERT_TRUE(saved);
  EXPECT_EQ(saved->error, "");
  Parts loaded(2, {}, false);
  EXPECT_EQ(load_checkpoint(saved->folder, loaded.model, loaded.optimizer).step, 3);
  EXPECT_TRUE(loaded.model->visual->named_parameters()["conv1.weight"].equal(weights));
  EXPECT_FALSE(saver.wait());
}

TEST(CheckpointSaverTest, AFailureIsToldAndTheEarlierCheckpointStays) {
  const test::TemporaryDirectory run;
  const Parts parts(1, {}, false);
  CheckpointSaver saver(run.path(), {}, {});
  saver.start(parts.content(3));
  const auto first = saver.wait();
  // A file where the folder of the next checkpoint goes.
  std::ofstream(run.path() / "checkpoints" / ("step_00000004.partial-" + std::to_string(::getpid()))) << "in the way";
  saver.start(parts.content(4));
  const auto second = saver.wait();
  ASSERT_TRUE(second);
  EXPECT_NE(second->error.find("step_00000004] writing failed"), std::string::npos) << second->error;
  EXPECT_EQ(verify_checkpoint(first->folder).step, 3);
  EXPECT_EQ(fs::read_symlink(run.path() / "checkpoints" / "latest"), "step_00000003");
}

TEST(CheckpointSaverRanksTest, OnlyTheFirstRankWritesAndTheOthersDoNotWait) {
  const auto folder = fs::temp_directory_path() / "contrastive_saver_one";
  test::run_on_ranks(3, [&](const ProcessGroup& group) {
    const Parts parts(1, group, false);
    CheckpointSaver saver(folder / std::to_string(group.rank()), group, {});
    saver.start(parts.content(3));
    EXPECT_EQ(saver.is_busy(), group.rank() == 0);
    saver.wait();
    EXPECT_EQ(fs::exists(folder / std::to_string(group.rank())), group.rank() == 0);
  });
  if (!test::is_rank()) fs::remove_all(folder);
}

TEST(CheckpointSaverRanksTest, ASharedOutStateIsLoadedByAnyNumberOfRanks) {
  const auto folder = fs::temp_directory_path() / "contrastive_saver_sharded";
  const auto checkpoint = folder / "checkpoints" / "step_00000003";
  test::run_on_ranks(3, [&](const ProcessGroup& group) {
    const Parts parts(1, group, true);
    CheckpointSaver saver(folder, group, {.sharded = true});
    saver.start(parts.content(3));
    const auto saved = saver.wait();
    ASSERT_TRUE(saved);
    EXPECT_EQ(saved->error, "");
    group.barrier();
    Parts again(2, group, true);
    EXPECT_EQ(load_checkpoint(checkpoint, again.model, again.optimizer).step, 3);
    expect_same(again.optimizer.state(), parts.optimizer.state());
    group.barrier();
  });
  if (test::is_rank()) return;
  EXPECT_TRUE(fs::exists(checkpoint / "optimizer-00002-of-00003.safetensors"));
  const Parts whole(1, {}, false);
  Parts alone(2, {}, false);
  load_checkpoint(checkpoint, alone.model, alone.optimizer);
  expect_same(alone.model->state(), whole.model->state());
  expect_same(alone.optimizer.state(), whole.optimizer.state());
  test::run_on_ranks(2, [&](const ProcessGroup& group) {
    const Parts own(1, group, true);
    Parts loaded(2, group, true);
    load_checkpoint(checkpoint, loaded.model, loaded.optimizer);
    expect_same(loaded.optimizer.state(), own.optimizer.state());
    group.barrier();
  });
  if (!test::is_rank()) fs::remove_all(folder);
}

TEST(CheckpointSaverRanksTest, TheFirstRankTellsOfAnotherOnesFailure) {
  const auto folder = fs::temp_directory_path() / "contrastive_saver_failing";
  test::run_on_ranks(2, [&](const ProcessGroup& group) {
    const Parts parts(1, group, true);
    // Rank 1 looks for the run somewhere else, as if there were no shared file system.
    CheckpointSaver saver(group.rank() == 0 ? folder : folder / "elsewhere", group, {.sharded = true});
    saver.start(parts.content(3));
    const auto saved = saver.wait();
    ASSERT_TRUE(saved);
    if (group.rank() == 0) {
      EXPECT_NE(saved->error.find("writing failed: rank 1: "), std::string::npos) << saved->error;
    }
    group.barrier();
  });
  if (!test::is_rank()) fs::remove_all(folder);
}

}  // namespace
}  // namespace contrastive::train
