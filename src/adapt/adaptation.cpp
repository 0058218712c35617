#include "contrastive/adapt/adaptation.h"

#include <algorithm>
#include <chrono>

#include <ATen/ATen.h>

#include "contrastive/core/error.h"
#include "contrastive/eval/classification_meter.h"

namespace contrastive::adapt {
namespace {

constexpr int64_t kScoredRows = 4096;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// What the protocol may look at; none if nothing is searched.
const LabelledQueries* searched_images(const AdaptationRequest& request, const LabelledQueries& test,
                                       const LabelledQueries* validation) {
  if (request.protocol == Protocol::test_oracle) return &test;
  if (request.protocol != Protocol::val) return nullptr;
  if (validation == nullptr) {
    throw ConfigError("[adaptation] the protocol val needs a labelled validation set");
  }
  return validation;
}

std::optional<GridAccuracy> search(const AdaptationRequest& request, Adapter& adapter, const SupportFeatures& support,
                                   const TextClassifier& classifier, const LabelledQueries* images,
                                   const distributed::ProcessGroup& group) {
  if (request.protocol == Protocol::fixed || adapter.parameters().empty()) return std::nullopt;
  if (images != nullptr) {
    adapter.observe(images->queries, group);
    return search_grid(adapter, images->queries, images->labels, group);
  }
  if (!adapter.needs_support()) {
    throw ConfigError("[adaptation] " + adapter.name() + " has no support set that support-cv could hold parts out of");
  }
  return cross_validate([&] { return make_adapter(request.adapter, request.settings); }, support, classifier,
                        request.cv);
}

void score(const LabelledQueries& test, const distributed::ProcessGroup& group, Adaptation& result) {
  eval::ClassificationMeter meter(result.adapter->num_classes());
  for (int64_t begin = 0; begin < test.queries.size(); begin += kScoredRows) {
    const auto end = std::min(test.queries.size(), begin + kScoredRows);
    meter.add(result.adapter->logits(test.queries.rows(begin, end), result.values).cpu(),
              test.labels.slice(0, begin, end));
  }
  meter.add_ranks(group);
  const auto metrics = meter.metrics();
  result.top1_accuracy = metrics.top1_accuracy;
  result.mean_per_class_recall = metrics.mean_per_class_recall;
  result.num_samples = metrics.num_samples;
}

}  // namespace

Adaptation adapt_and_test(const AdaptationRequest& request, const SupportFeatures& support,
                          const TextClassifier& classifier, const LabelledQueries& test,
                          const LabelledQueries* validation, const distributed::ProcessGroup& group) {
  const auto* images = searched_images(request, test, validation);
  Adaptation result;
  result.adapter = make_adapter(request.adapter, request.settings);
  auto start = std::chrono::steady_clock::now();
  result.adapter->fit(support, classifier);
  result.fit_seconds = seconds_since(start);

  start = std::chrono::steady_clock::now();
  result.search = search(request, *result.adapter, support, classifier, images, group);
  result.values = result.search ? result.search->best() : result.adapter->fixed_values();
  result.search_seconds = seconds_since(start);

  start = std::chrono::steady_clock::now();
  if (request.transductive) result.adapter->observe(test.queries, group);
  score(test, group, result);
  result.score_seconds = seconds_since(start);
  return result;
}

}  // namespace contrastive::adapt
