#include "contrastive/adapt/support_builders.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/data/synthetic.h"
#include "contrastive/eval/few_shot.h"
#include "contrastive/eval/image_pass.h"

#include "tests/support/errors.h"
#include "tests/support/tensors.h"

namespace contrastive::adapt {
namespace {

class SupportFromSplitTest : public ::testing::Test {
 protected:
  SupportFromSplitTest() {
    models::ModelConfig config;
    config.embed_dim = 16;
    config.vision_cfg.layers = {1};
    config.vision_cfg.width = 32;
    config.vision_cfg.head_width = 16;
    config.vision_cfg.patch_size = 8;
    config.vision_cfg.image_size = 32;
    config.text_cfg.layers = 1;
    config.text_cfg.width = 16;
    config.text_cfg.heads = 2;
    model_ = models::ClipModel(config);
    model_->reset_parameters(at::detail::createCPUGenerator(1));
    set_ = data::synthetic_classification({.samples = 300, .image_size = 48});
    spec_.size = 32;
  }

  SupportSet build(const FromSplitOptions& options) { return support_from_split(model_, spec_, set_, options); }

  models::ClipModel model_{nullptr};
  data::ClassificationSet set_;
  image::PreprocessSpec spec_;
};

TEST_F(SupportFromSplitTest, TakesTheDrawnImagesAsEvaluationSeesThem) {
  FromSplitOptions options;
  options.shots = 3;
  options.seed = 4;
  const auto built = build(options);
  const auto all = eval::collect_features(model_, spec_, *set_.source, 0, set_.source->size(), {});
  const auto drawn = eval::draw_shots(all.labels, static_cast<int64_t>(set_.class_names.size()), 3, 4);
  EXPECT_TRUE(built.features.labels.equal(all.labels.index_select(0, drawn)));
  EXPECT_TRUE(test::tensors_near("keys", built.features.keys, all.features.index_select(0, drawn), {1e-6, 1e-6}));
  EXPECT_EQ(built.rows.front().key, set_.source->key(drawn[0].item<int64_t>()));
  EXPECT_FALSE(built.features.views.defined());
  EXPECT_EQ(built.made_by.at("builder"), "from-split");
}

TEST_F(SupportFromSplitTest, AveragesViewsBeforeTheyAreNormalised) {
  FromSplitOptions options;
  options.shots = 2;
  options.views = 3;
  const auto built = build(options);
  ASSERT_EQ(built.features.views.sizes(), at::IntArrayRef({built.size(), 3, 16}));
  const auto directions = built.features.views.mean(1);
  const auto of_normalised = directions / directions.norm(2, 1, true);
  // Means of raw and of normalised rows are near each other, but not the same.
  EXPECT_GT(built.features.keys.sub(of_normalised).abs().max().item<double>(), 1e-6);
  EXPECT_GT((built.features.keys * of_normalised).sum(1).min().item<double>(), 0.99);
  // The key lies in the span of its views.
  for (int64_t i = 0; i < built.size(); ++i) {
    const auto basis = built.features.views[i].t();  // [D, V]
    const auto fit = std::get<0>(at::linalg_lstsq(basis, built.features.keys[i].unsqueeze(1)));
    EXPECT_LT(basis.matmul(fit).squeeze(1).sub(built.features.keys[i]).abs().max().item<double>(), 1e-4);
    EXPECT_GT(fit.min().item<double>(), 0);
  }
}

TEST_F(SupportFromSplitTest, TheSameWhateverTheBatchAndTheWorkers) {
  FromSplitOptions options;
  options.shots = 2;
  options.views = 2;
  options.pass.batch_size = 64;
  const auto once = build(options);
  options.pass.batch_size = 5;
  options.pass.workers = 1;
  const auto again = build(options);
  EXPECT_TRUE(test::tensors_near("keys", again.features.keys, once.features.keys, {1e-6, 1e-6}));
  options.seed = 2;
  EXPECT_FALSE(at::allclose(build(options).features.keys, once.features.keys));
}

TEST_F(SupportFromSplitTest, FewerShotsAreAmongMore) {
  FromSplitOptions options;
  options.shots = 1;
  const auto one = build(options);
  options.shots = 2;
  const auto two = build(options);
  for (int64_t c = 0; c < one.num_classes(); ++c) {
    EXPECT_EQ(one.rows[static_cast<size_t>(c)].key,
              two.rows[static_cast<size_t>(two.features.offsets()[c].item<int64_t>())].key);
  }
}

TEST_F(SupportFromSplitTest, SaysWhatIsWrong) {
  set_.class_names.emplace_back("unicorn");
  EXPECT_EQ(test::message_of<DataError>([&] { build({}); }),
            "[from-split] 1 of " + std::to_string(set_.class_names.size()) + " classes of " + set_.name +
                " have no sample, the first is \"unicorn\"");
  FromSplitOptions options;
  options.views = 0;
  EXPECT_EQ(test::message_of<ConfigError>([&] { build(options); }), "[from-split] views must be at least 1, but is 0");
}

/// Some samples of a set, of which some can't be read.
class Damaged : public data::SampleSource {
 public:
  Damaged(const data::SampleSource& source, std::vector<int64_t> samples)
      : source_(source), samples_(std::move(samples)) {}

  int64_t size() const override { return static_cast<int64_t>(samples_.size()); }
  void read(int64_t index, RandomStream& random, data::Sample& sample) const override {
    const auto number = samples_[static_cast<size_t>(index)];
    if (number < 0) throw DataError("no image");
    source_.read(number, random, sample);
  }
  std::string describe(int64_t index) const override { return "sample " + std::to_string(index); }
  std::string fingerprint() const override { return "damaged"; }

 private:
  const data::SampleSource& source_;
  std::vector<int64_t> samples_;  ///< -1: can't be read
};

TEST_F(SupportFromSplitTest, AFolderGivesAllImagesButUnreadableAndRepeatedOnes) {
  const auto all = eval::collect_features(model_, spec_, *set_.source, 0, 60, {});
  std::vector<int64_t> samples;
  for (int64_t i = 0; i < 60; ++i) samples.push_back(i);
  samples.push_back(-1);
  samples.push_back(3);  // again
  // Only classes that occur can make a support set.
  std::vector<int64_t> occurring;
  for (int64_t c = 0; c < static_cast<int64_t>(set_.class_names.size()); ++c) {
    if (all.labels.eq(c).any().item<bool>()) occurring.push_back(c);
  }
  auto damaged = set_;
  damaged.source = std::make_shared<Damaged>(*set_.source, samples);
  if (occurring.size() < set_.class_names.size()) {
    EXPECT_NE(test::message_of<DataError>([&] {
                support_from_folder(model_, spec_, damaged, {});
              }).find("have no image that can be read"),
              std::string::npos);
    for (int64_t i = 60; i < 300; ++i) samples.push_back(i);
    damaged.source = std::make_shared<Damaged>(*set_.source, samples);
  }
  FromFolderReport report;
  const auto built = support_from_folder(model_, spec_, damaged, {}, &report);
  EXPECT_EQ(report.unreadable.count, 1);
  EXPECT_EQ(report.unreadable.first.front().name, "sample 60");
  EXPECT_EQ(report.duplicates, 1);
  EXPECT_EQ(built.size(), static_cast<int64_t>(samples.size()) - 2);
  // Labels are the set's, whatever the order of its names.
  EXPECT_FALSE(std::is_sorted(built.class_names.begin(), built.class_names.end()));
  EXPECT_EQ(built.class_names, set_.class_names);
  const auto labels = eval::read_labels(set_);
  for (int64_t i = 0; i < built.size(); ++i) {
    const auto number = std::stoul(built.rows[static_cast<size_t>(i)].key.substr(std::string("sample ").size()));
    EXPECT_NE(number, 60U);
    EXPECT_EQ(built.features.labels[i].item<int64_t>(), labels[samples[number]].item<int64_t>());
  }

  FromFolderOptions options;
  options.max_per_class = 1;
  EXPECT_EQ(support_from_folder(model_, spec_, damaged, options).size(), built.num_classes());
}

TEST_F(SupportFromSplitTest, ASetFoundWithOneModelIsEncodedAgainByAnother) {
  FromSplitOptions options;
  options.shots = 2;
  const auto found = build(options);
  model_->reset_parameters(at::detail::createCPUGenerator(2));
  const auto again = encode_again(model_, spec_, found, *set_.source, {});
  EXPECT_TRUE(test::tensors_near("keys", again.features.keys, build(options).features.keys, {1e-6, 1e-6}));
  EXPECT_GT(again.features.keys.sub(found.features.keys).abs().max().item<double>(), 1e-2);
  EXPECT_TRUE(again.features.labels.equal(found.features.labels));
  EXPECT_EQ(again.rows.back().key, found.rows.back().key);
}

/// A source with other keys.
class Keyed : public Damaged {
 public:
  Keyed(const data::SampleSource& source, std::vector<int64_t> samples, std::vector<std::string> keys)
      : Damaged(source, std::move(samples)), keys_(std::move(keys)) {}
  std::string key(int64_t index) const override { return keys_[static_cast<size_t>(index)]; }

 private:
  std::vector<std::string> keys_;
};

TEST_F(SupportFromSplitTest, WhatCannotBeEncodedAgainIsLeftOutOrRefused) {
  SupportSet found;
  found.features = {at::eye(5, 16), at::tensor({0, 0, 1, 1, 1}, at::kLong), 2, {}};
  found.class_names = {"x", "y"};
  for (const char* key : {"a", "b", "c", "d", "e"}) found.rows.push_back({"shards", key, "", 0, ""});
  const auto encode = [&](std::vector<int64_t> samples, std::vector<std::string> keys) {
    eval::SkippedSamples unreadable;
    const Keyed source(*set_.source, std::move(samples), std::move(keys));
    auto set = encode_again(model_, spec_, found, source, {}, &unreadable);
    EXPECT_EQ(unreadable.count, found.size() - set.size());
    return set;
  };
  const auto some = encode({4, 3, -1, 1, 0, 9}, {"e", "d", "c", "b", "a", "f"});
  EXPECT_TRUE(some.features.labels.equal(at::tensor({0, 0, 1, 1}, at::kLong)));
  EXPECT_EQ(some.rows[2].key, "d");
  const auto all = eval::collect_features(model_, spec_, *set_.source, 0, 5, {});
  const auto expected = all.features.index_select(0, at::tensor({0, 1, 3, 4}, at::kLong));
  EXPECT_TRUE(test::tensors_near("keys", some.features.keys, expected, {1e-6, 1e-6}));
  EXPECT_EQ(test::message_of<DataError>([&] {
              encode({-1, -1, 2, 3, 4}, {"a", "b", "c", "d", "e"});
            }),
            "[encode_again] 1 classes have no image that can be read: x");
  EXPECT_EQ(test::message_of<DataError>([&] {
              encode({0, 1, 2}, {"a", "b", "c"});
            }),
            "[encode_again] 2 images of the support set are not among those given: d, e");
  EXPECT_EQ(test::message_of<DataError>([&] {
              encode({0, 1, 2, 3, 4, 5}, {"a", "b", "c", "d", "e", "c"});
            }),
            "[encode_again] 1 keys of the support set stand for several of the images given: c");
}

TEST_F(SupportFromSplitTest, PlacesComeWithTheEmbedding) {
  eval::ImagePassOptions pass;
  pass.batch_size = 7;
  const auto plain = eval::collect_features(model_, spec_, *set_.source, 0, 20, pass);
  pass.stage = eval::FeatureStage::places;
  const auto all = eval::collect_features(model_, spec_, *set_.source, 0, 20, pass).features;
  ASSERT_EQ(all.sizes(), at::IntArrayRef({20, (1 + 4 * 4) * 16}));
  EXPECT_TRUE(test::tensors_near("embedding", all.slice(1, 0, 16), plain.features, {1e-6, 1e-6}));
  EXPECT_LT(all.view({20, -1, 16}).norm(2, 2).sub(1).abs().max().item<double>(), 1e-5);
}

}  // namespace
}  // namespace contrastive::adapt
