#include <numeric>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "contrastive/core/file.h"
#include "contrastive/data/evaluation_loader.h"
#include "contrastive/data/shard_list.h"
#include "contrastive/data/shard_writer.h"
#include "contrastive/data/synthetic.h"
#include "contrastive/data/train_loader.h"
#include "contrastive/data/webdataset_source.h"
#include "contrastive/eval/zero_shot.h"
#include "contrastive/text/clip_tokenizer.h"

#include "tests/support/paths.h"
#include "tests/support/ranks.h"

namespace contrastive::data {
namespace {

constexpr int64_t kSamples = 120;
constexpr int64_t kBatch = 24;
constexpr int64_t kSteps = 7;  // more than one epoch

std::shared_ptr<const text::Tokenizer> tokenizer() {
  return std::make_shared<text::ClipTokenizer>(find_resource("clip/bpe_simple_vocab_16e6.txt.gz"));
}

/// Bytes that the ranks of a world read for the same steps.
std::vector<int64_t> bytes_read_by(int64_t world_size, const std::vector<std::filesystem::path>& shards) {
  std::vector<int64_t> bytes;
  for (int64_t rank = 0; rank < world_size; ++rank) {
    const auto source = std::make_shared<WebdatasetSource>(ShardIndex::open(shards), WebdatasetOptions{});
    TrainLoaderOptions options;
    options.batch_size = kBatch;
    options.image_size = 32;
    options.rank = rank;
    options.world_size = world_size;
    TrainLoader loader(source, tokenizer(), options);
    for (int64_t step = 0; step < kSteps; ++step) loader.next();
    bytes.push_back(source->bytes_read());
  }
  return bytes;
}

TEST(RankDataTest, EachRankReadsItsSliceOnly) {
  const test::TemporaryDirectory folder;
  write_shards(SyntheticSource({.samples = kSamples, .image_size = 32}), folder.path(), 40);
  const auto shards = expand_shard_list((folder.path() / "{00000..00002}.tar").string());
  const auto whole = bytes_read_by(1, shards).front();
  for (const int64_t world_size : {2, 3, 4}) {
    const auto parts = bytes_read_by(world_size, shards);
    EXPECT_EQ(std::accumulate(parts.begin(), parts.end(), int64_t{0}), whole) << world_size;
    for (const auto part : parts)
      EXPECT_NEAR(static_cast<double>(part), static_cast<double>(whole) / world_size, 0.1 * whole);
  }
}

models::ClipModel make_model() {
  models::ModelConfig config;
  config.embed_dim = 8;
  config.vision_cfg = {.layers = {1}, .width = 16, .head_width = 8, .patch_size = 8, .image_size = 32};
  config.text_cfg.width = 16;
  config.text_cfg.heads = 2;
  config.text_cfg.layers = 1;
  models::ClipModel model(config);
  model->reset_parameters(at::make_generator<at::CPUGeneratorImpl>(uint64_t{5}));
  return model;
}

TEST(RankEvaluationTest, ResultsHaveTheSameBitsWhateverTheSplit) {
  // 50 images in batches of 7: ranks get unequal numbers of batches, and the last one is short.
  const auto set = synthetic_classification({.samples = 50, .image_size = 32});
  const eval::ZeroShotOptions options{.batch_size = 7, .workers = 1, .bf16 = false};
  auto model = make_model();
  const auto words = tokenizer();
  const auto prompts = eval::fill_templates("", set.class_names, set.templates);
  const auto classifier = eval::build_classifier(model, *words, prompts, options);
  const auto expected = eval::evaluate_zero_shot(model, {.size = 32}, *words, set, options);
  EXPECT_EQ(expected.num_samples, 50);
  for (const int ranks : {2, 3, 9}) {
    test::run_on_ranks(ranks, [&](const distributed::ProcessGroup& group) {
      EXPECT_TRUE(eval::build_classifier(model, *words, prompts, options, group).rows.equal(classifier.rows));
      const auto actual = eval::evaluate_zero_shot(model, {.size = 32}, *words, set, options, group);
      EXPECT_EQ(actual.num_samples, expected.num_samples);
      EXPECT_EQ(actual.top1_accuracy, expected.top1_accuracy);
      EXPECT_EQ(actual.top5_accuracy, expected.top5_accuracy);
      EXPECT_EQ(actual.mean_per_class_recall, expected.mean_per_class_recall);
    });
  }
}

}  // namespace
}  // namespace contrastive::data
