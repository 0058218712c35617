#include <algorithm>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "contrastive/eval/classification_meter.h"
#include "contrastive/eval/multi_label_meter.h"
#include "contrastive/eval/retrieval.h"

#include "tests/support/ranks.h"
#include "tests/support/tensors.h"

// Metrics over ranks: those of one rank, to the bit.
namespace contrastive::eval {
namespace {

using distributed::ProcessGroup;
using Lists = std::vector<std::vector<int64_t>>;

constexpr int64_t kSamples = 100;
constexpr int64_t kBatch = 16;

/// Calls use(begin, size) for the batches of one rank: every W-th. The last ranks may have none.
template <typename Use>
void for_own_batches(const ProcessGroup& group, const Use& use) {
  for (int64_t begin = group.rank() * kBatch; begin < kSamples; begin += group.size() * kBatch) {
    use(begin, std::min(kBatch, kSamples - begin));
  }
}

Lists lists_of(int64_t begin, int64_t size, int64_t num_classes) {
  Lists lists;
  for (int64_t i = begin; i < begin + size; ++i) {
    auto& list = lists.emplace_back();
    for (int64_t c = i % 3; c < i % 4; ++c) list.push_back((i * 5 + c) % num_classes);
  }
  return lists;
}

ClassificationMeter count_labels(int64_t num_classes, const ProcessGroup& group) {
  const auto scores = test::random_normal({kSamples, num_classes}, 1).mul(4).round();
  const auto labels = at::arange(kSamples).mul(7).remainder(num_classes);
  ClassificationMeter meter(num_classes);
  for_own_batches(group, [&](int64_t begin, int64_t size) {
    meter.add(scores.narrow(0, begin, size), labels.narrow(0, begin, size));
    meter.add(scores.narrow(0, begin, size), lists_of(begin, size, num_classes));
  });
  meter.add_ranks(group);
  return meter;
}

void check_classification(int64_t num_classes, const ProcessGroup& group) {
  const auto expected = count_labels(num_classes, {});
  const auto actual = count_labels(num_classes, group);
  EXPECT_EQ(actual.confusion(), expected.confusion());
  const auto a = actual.metrics();
  const auto b = expected.metrics();
  EXPECT_EQ(a.top1_accuracy, b.top1_accuracy);
  EXPECT_EQ(a.top5_accuracy, b.top5_accuracy);
  EXPECT_EQ(a.mean_per_class_recall, b.mean_per_class_recall);
  EXPECT_EQ(a.roc_auc, b.roc_auc);
  EXPECT_EQ(a.roc_auc.has_value(), num_classes == 2);
  EXPECT_EQ(a.num_samples, b.num_samples);
  EXPECT_EQ(a.num_unlabelled, b.num_unlabelled);
  EXPECT_GT(a.num_unlabelled, 0);
}

MultiLabelMetrics multi_label(const ProcessGroup& group) {
  const auto scores = test::random_normal({kSamples, 6}, 2).mul(2).round();
  MultiLabelMeter meter(6);
  for_own_batches(
      group, [&](int64_t begin, int64_t size) { meter.add(scores.narrow(0, begin, size), lists_of(begin, size, 6)); });
  meter.add_ranks(group);
  return meter.metrics();
}

void check_multi_label(const ProcessGroup& group) {
  const auto expected = multi_label({});
  const auto actual = multi_label(group);
  EXPECT_EQ(actual.num_samples, expected.num_samples);
  EXPECT_EQ(actual.mean_eleven_point, expected.mean_eleven_point);
  EXPECT_EQ(actual.mean_average_precision, expected.mean_average_precision);
  for (size_t i = 0; i < actual.classes.size(); ++i) {
    EXPECT_EQ(actual.classes[i].positives, expected.classes[i].positives);
    EXPECT_EQ(actual.classes[i].average_precision, expected.classes[i].average_precision);
  }
}

void check_retrieval(int64_t num_images, int64_t num_texts, const ProcessGroup& group) {
  const auto images = test::random_normal({num_images, 24}, 3);
  const auto texts = test::random_normal({num_texts, 24}, 4);
  const auto index = at::arange(num_texts).remainder(num_images);
  const auto expected = retrieval_metrics(images, texts, index);
  const auto actual = retrieval_metrics(images, texts, index, {}, group);
  EXPECT_TRUE(test::same_bytes(actual.image_retrieval.ranks, expected.image_retrieval.ranks));
  EXPECT_TRUE(test::same_bytes(actual.text_retrieval.ranks, expected.text_retrieval.ranks));
  EXPECT_EQ(actual.image_retrieval.recall, expected.image_retrieval.recall);
  EXPECT_EQ(actual.text_retrieval.mean_rank, expected.text_retrieval.mean_rank);
}

TEST(EvaluationTest, MetricsAreThoseOfOneRank) {
  for (const int ranks : {2, 3, 8}) {
    test::run_on_ranks(ranks, [](const ProcessGroup& group) {
      check_classification(9, group);
      check_classification(2, group);
      check_multi_label(group);
      check_retrieval(300, 1500, group);
      check_retrieval(5, 7, group);
    });
  }
}

}  // namespace
}  // namespace contrastive::eval
