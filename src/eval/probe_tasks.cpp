#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/error.h"
#include "contrastive/eval/feature_cache.h"
#include "contrastive/eval/few_shot.h"
#include "contrastive/eval/linear_probe.h"

#include "eval/agree.h"
#include "eval/evaluation_context.h"
#include "eval/json_text.h"

namespace contrastive::eval::detail {
namespace {

using nlohmann::ordered_json;

void require_one_label(const data::ClassificationSet& set) {
  if (set.is_multi_label) throw DataError(fmt::format("[{}] a probe needs one label an image", set.name));
}

/// Adds what a pass left out.
void add(const SkippedSamples& more, SkippedSamples& skipped) {
  skipped.count += more.count;
  for (const auto& each : more.first) {
    if (skipped.first.size() < 10) skipped.first.push_back(each);
  }
}

/// All features of a set on every rank, from the cache if there is one.
LabelledFeatures features_of(EvaluationContext& context, const data::ClassificationSet& set, FeatureStage stage,
                             SkippedSamples& skipped) {
  const auto size = set.source->size();
  const auto collect = [&](int64_t begin, int64_t end) {
    auto collected = collect_features(context.model, context.preprocess, *set.source, begin, end,
                                      context.image_pass(stage), context.group);
    add(collected.skipped, skipped);
    return LabelledFeatures{std::move(collected.features), std::move(collected.labels)};
  };
  if (context.options.cache.empty()) return collect(0, size);
  FeatureCacheOptions options;
  options.folder = std::filesystem::path(context.options.cache) / "features";
  options.num_samples = size;
  options.settings = {{"model", context.model_digest()},
                      {"data", source_state(*set.source)},
                      {"classes", std::to_string(set.class_names.size())},
                      {"stage", stage == FeatureStage::tower ? "tower" : "embedding"},
                      {"precision", context.precision()},
                      {"bad_samples", context.options.skip_bad_samples ? "skip" : "fail"}};
  const auto counted = skipped.count;
  auto features = cached_features(options, collect, context.group);
  skipped.count = counted + size - features.labels.size(0);  // also those that an earlier run left out
  return features;
}

std::string curve_json(const LinearProbeResult& result) {
  ordered_json details{{"c", result.c},
                       {"objective", result.fit.objective},
                       {"iterations", result.fit.iterations},
                       {"converged", result.fit.converged}};
  for (const auto& point : result.curve) {
    details["validation"].push_back({{"c", point.c},
                                     {"acc1", point.validation_accuracy},
                                     {"iterations", point.iterations},
                                     {"converged", point.converged}});
  }
  return json_text(details);
}

void report_probe(const LinearProbeResult& probe, EvaluationResult& result) {
  result.metrics = {{"lp_acc1", probe.test.top1_accuracy},
                    {"lp_acc5", probe.test.top5_accuracy},
                    {"lp_mean_per_class_recall", probe.test.mean_per_class_recall}};
  result.shown = {"lp_acc1", "lp_acc5", "lp_mean_per_class_recall"};
  result.details = curve_json(probe);
  if (!probe.fit.converged) result.hints.emplace_back("the regression stopped before it converged");
}

void report_few_shot(const std::vector<FewShotProbeMetrics>& all, EvaluationResult& result) {
  ordered_json details;
  for (const auto& each : all) {
    const auto name = fmt::format("lp_acc1_{}shot", each.shots);
    result.metrics.emplace_back(name, each.mean_top1());
    result.metrics.emplace_back(name + "_std", each.top1_deviation());
    result.shown.push_back(name);
    auto& draws = details["by_seed"][std::to_string(each.shots)];
    for (size_t i = 0; i < each.draws.size(); ++i) {
      draws.push_back({{"lp_acc1", each.draws[i].top1_accuracy}, {"c", each.c[i]}});
    }
  }
  result.details = json_text(details);
}

}  // namespace

std::vector<EvaluationResult> run_linear_probe(EvaluationContext& context, const EvaluationTask& task,
                                               const EvaluationData& data) {
  for (const auto* set : {&data.test, &data.train, &data.validation}) {
    if (*set) require_one_label(**set);
  }
  const auto stage = task.features == "embedding" ? FeatureStage::embedding : FeatureStage::tower;
  auto result = context.new_result(task, data);
  result.task = "linear_probe";
  result.origin["features"] = task.features;
  const auto train = features_of(context, *data.train, stage, result.skipped);
  std::optional<LabelledFeatures> validation;
  if (data.validation) validation = features_of(context, *data.validation, stage, result.skipped);
  const auto test = features_of(context, *data.test, stage, result.skipped);
  result.num_samples = test.labels.size(0);

  const auto num_classes = static_cast<int64_t>(data.test->class_names.size());
  LinearProbeOptions options;
  if (task.c) {
    options.regression.c = *task.c;
    options.sweep = SweepMode::none;
  } else {
    options.sweep = task.sweep == "full" ? SweepMode::full : SweepMode::binary;
  }
  int64_t fits = 0;
  const auto on_fit = context.progress("fits");
  const int64_t expected_fits = options.sweep == SweepMode::full ? 97 : 15;
  options.on_point = [&](const SweepPoint&) {
    if (on_fit && context.group.rank() == 0) on_fit(std::min(++fits, expected_fits), expected_fits);
  };
  agree(context.group, [&] {
    if (task.shots.empty()) {
      report_probe(linear_probe(train, validation, test, num_classes, options), result);
    } else {
      FewShotProbeOptions few;
      few.shots = task.shots;
      few.seeds = task.seeds;
      few.probe = options;
      few.probe.on_point = {};
      report_few_shot(probe_few_shot(train, test, num_classes, few), result);
    }
  });
  return {std::move(result)};
}

std::vector<EvaluationResult> run_few_shot(EvaluationContext& context, const EvaluationTask& task,
                                           const EvaluationData& data) {
  FewShotOptions options;
  if (!task.shots.empty()) options.shots = task.shots;
  options.seeds = task.seeds;
  options.l2_reg = task.l2;
  options.pass = context.image_pass(FeatureStage::tower);
  auto result = context.new_result(task, data);
  result.task = "fewshot_linear_regression";
  ordered_json details{{"l2_reg", task.l2}};
  for (const auto& each : evaluate_few_shot(context.model, context.preprocess, *data.train, *data.test, options,
                                            context.group, &result.skipped)) {
    const auto name = fmt::format("acc1_{}shot", each.shots);
    result.metrics.emplace_back(name, each.mean());
    result.shown.push_back(name);
    details["by_seed"][std::to_string(each.shots)] = each.accuracies;
  }
  result.num_samples = data.test->source->size() - result.skipped.count;
  result.details = json_text(details);
  return {std::move(result)};
}

}  // namespace contrastive::eval::detail
