#include "contrastive/eval/evaluator.h"

#include <algorithm>
#include <map>
#include <memory>
#include <string>

#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/data/shard_writer.h"
#include "contrastive/data/synthetic.h"
#include "contrastive/eval/suite.h"
#include "contrastive/eval/zero_shot.h"
#include "contrastive/text/clip_tokenizer.h"

#include "tests/support/errors.h"
#include "tests/support/paths.h"

namespace contrastive::eval {
namespace {

namespace fs = std::filesystem;

models::ClipModel make_model(int64_t seed) {
  models::ModelConfig config;
  config.embed_dim = 16;
  config.vision_cfg.layers = {1};
  config.vision_cfg.width = 32;
  config.vision_cfg.head_width = 16;
  config.vision_cfg.patch_size = 8;
  config.vision_cfg.image_size = 16;
  config.text_cfg.context_length = 16;
  config.text_cfg.layers = 1;
  config.text_cfg.width = 16;
  config.text_cfg.heads = 1;
  models::ClipModel model(config);
  model->reset_parameters(at::detail::createCPUGenerator(static_cast<uint64_t>(seed)));
  return model;
}

class EvaluatorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    set_ = data::synthetic_classification({.samples = 60, .image_size = 16});
    data::write_classification_folder(set_, folder_.path() / "set", "test", 20);
    data::write_shards(data::SyntheticSource({.samples = 40, .image_size = 16}), folder_.path() / "pairs", 40);
  }

  Evaluator evaluator(EvaluatorOptions options = {}, int64_t seed = 1) const {
    options.batch_size = 16;
    image::PreprocessSpec preprocess;
    preprocess.size = 16;
    return Evaluator(make_model(seed), preprocess, tokenizer_, options);
  }

  EvaluationTask task(const std::string& kind, const fs::path& data) const {
    EvaluationTask task;
    task.task = kind;
    task.data = data.string();
    task.name = "name";
    return task;
  }

  EvaluationTask zero_shot() const { return task("zero-shot", folder_.path() / "set"); }

  static std::map<std::string, double> metrics(const EvaluationResult& result) {
    return {result.metrics.begin(), result.metrics.end()};
  }

  test::TemporaryDirectory folder_;
  data::ClassificationSet set_;
  std::shared_ptr<const text::Tokenizer> tokenizer_ = std::make_shared<const text::ClipTokenizer>(test::merges_file());
};

TEST_F(EvaluatorTest, HasTheAccuraciesOfThePlainEvaluation) {
  auto own = evaluator();
  const auto results = own.run(*own.prepare(zero_shot()));
  ASSERT_EQ(results.size(), 1U);
  auto model = make_model(1);
  image::PreprocessSpec preprocess;
  preprocess.size = 16;
  const auto expected = evaluate_zero_shot(model, preprocess, *tokenizer_, set_, {.batch_size = 16});
  EXPECT_EQ(metrics(results[0]).at("acc1"), expected.top1_accuracy);
  EXPECT_EQ(metrics(results[0]).at("acc5"), expected.top5_accuracy);
  EXPECT_EQ(metrics(results[0]).at("mean_per_class_recall"), expected.mean_per_class_recall);
  EXPECT_EQ(results[0].num_samples, 60);
  EXPECT_EQ(results[0].prompts, "dataset");
}

TEST_F(EvaluatorTest, SeveralPromptsGiveWhatEachGivesAlone) {
  auto task = zero_shot();
  task.prompts = {"dataset", "class_name"};
  auto own = evaluator();
  const auto together = own.run(*own.prepare(task));
  ASSERT_EQ(together.size(), 2U);
  EXPECT_EQ(together[0].name, "name_dataset");
  EXPECT_EQ(together[1].name, "name_class_name");
  for (size_t i = 0; i < 2; ++i) {
    auto single = zero_shot();
    single.prompts = {task.prompts[i]};
    EXPECT_EQ(metrics(own.run(*own.prepare(single))[0]), metrics(together[i]));
  }
  EXPECT_NE(together[0].origin.at("prompts_sha256"), together[1].origin.at("prompts_sha256"));
}

TEST_F(EvaluatorTest, AKeptClassifierIsThatOfTheSameTextsAndTower) {
  EvaluatorOptions options;
  options.cache = (folder_.path() / "cache").string();
  int64_t encoded = 0;
  options.on_progress = [&](const std::string& what, int64_t, int64_t) { encoded += what == "prompts" ? 1 : 0; };
  const auto run = [&](int64_t seed, const EvaluationTask& task) {
    encoded = 0;
    auto own = evaluator(options, seed);
    return metrics(own.run(*own.prepare(task))[0]);
  };
  const auto first = run(1, zero_shot());
  EXPECT_GT(encoded, 0);
  EXPECT_EQ(run(1, zero_shot()), first);
  EXPECT_EQ(encoded, 0) << "the classifier was built again";
  auto other = zero_shot();
  other.prompts = {"class_name"};
  run(1, other);
  EXPECT_GT(encoded, 0) << "of other prompts";
  run(2, zero_shot());
  EXPECT_GT(encoded, 0) << "of another tower";
  // A damaged file is made anew.
  for (const auto& entry : fs::directory_iterator(folder_.path() / "cache" / "classifiers")) {
    write_file_atomically(entry.path(), "damaged");
  }
  EXPECT_EQ(run(1, zero_shot()), first);
  EXPECT_GT(encoded, 0);
}

TEST_F(EvaluatorTest, RetrievesByEveryCaptionWhateverTheBatchSize) {
  auto own = evaluator();
  const auto results = own.run(*own.prepare(task("retrieval", folder_.path() / "pairs")));
  ASSERT_EQ(results.size(), 1U);
  EXPECT_EQ(results[0].num_samples, 40);
  const auto values = metrics(results[0]);
  for (const auto* name : {"image", "text"}) {
    const auto at = [&](const std::string& end) { return values.at(std::string(name) + "_retrieval_" + end); };
    EXPECT_LE(at("recall@1"), at("recall@5"));
    EXPECT_LE(at("recall@5"), at("recall@10"));
    EXPECT_GE(at("mean_rank"), 1);
    EXPECT_LE(at("mean_rank"), 40);
  }
}

TEST_F(EvaluatorTest, TheKeyChangesWithModelDataAndSettings) {
  const auto key = [&](int64_t seed, const EvaluationTask& task, bool bf16 = false) {
    EvaluatorOptions options;
    options.bf16 = bf16;
    auto own = evaluator(options, seed);
    return own.key(*own.prepare(task));
  };
  const auto first = key(1, zero_shot());
  EXPECT_EQ(key(1, zero_shot()), first);
  EXPECT_NE(key(2, zero_shot()), first);
  EXPECT_NE(key(1, zero_shot(), /*bf16=*/true), first);
  auto changed = zero_shot();
  changed.prompts = {"class_name"};
  EXPECT_NE(key(1, changed), first);
  changed = zero_shot();
  changed.per_class = true;
  EXPECT_NE(key(1, changed), first);
  write_file_atomically(folder_.path() / "set" / "zeroshot_classification_templates.txt", "{c}, another\n");
  EXPECT_NE(key(1, zero_shot()), first);
}

TEST_F(EvaluatorTest, ASuiteGoesOnAfterAFailureAndKeepsWhatIsThere) {
  Suite suite;
  auto missing = task("zero-shot", folder_.path() / "nowhere");
  missing.name = "missing";
  auto good = zero_shot();
  good.name = "good";
  auto pairs = task("retrieval", folder_.path() / "pairs");
  pairs.name = "pairs";
  suite.tasks = {missing, good, pairs};
  auto own = evaluator();
  const auto results = folder_.path() / "results";
  const auto first = run_suite(suite, own, {"m", "w", "label", "command"}, results, {});
  ASSERT_EQ(first.failures.size(), 1U);
  EXPECT_EQ(first.failures[0].name, "missing");
  EXPECT_NE(first.failures[0].message.find("nowhere"), std::string::npos);
  EXPECT_EQ(first.results.size(), 2U);
  EXPECT_EQ(first.num_kept, 0);
  EXPECT_TRUE(fs::exists(results / "good.json") && fs::exists(results / "pairs.json"));
  EXPECT_FALSE(fs::exists(results / "missing.json"));

  const auto second = run_suite(suite, own, {"m", "w", "label", "command"}, results, {});
  EXPECT_EQ(second.num_kept, 2);
  EXPECT_EQ(metrics(second.results[0]), metrics(first.results[0]));

  write_file_atomically(results / "good.json", "damaged");
  EXPECT_EQ(run_suite(suite, own, {"m", "w", "label", "command"}, results, {}).num_kept, 1);
  auto other = evaluator({}, 2);
  EXPECT_EQ(run_suite(suite, other, {"m", "w", "label", "command"}, results, {}).num_kept, 0);
}

TEST_F(EvaluatorTest, ProbesNeedNoTokenizerButTheOthersDo) {
  image::PreprocessSpec preprocess;
  preprocess.size = 16;
  Evaluator own(make_model(1), preprocess, nullptr, {.batch_size = 16});
  auto probe = task("linear-probe", folder_.path() / "set");
  probe.train_split = "test";
  probe.c = 1;
  EXPECT_EQ(own.run(*own.prepare(probe))[0].task, "linear_probe");
  EXPECT_NE(test::message_of<ConfigError>([&] { own.run(*own.prepare(zero_shot())); }).find("needs a tokenizer"),
            std::string::npos);
}

}  // namespace
}  // namespace contrastive::eval
