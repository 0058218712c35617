#include <algorithm>
#include <optional>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/error.h"
#include "contrastive/eval/class_order.h"
#include "contrastive/eval/classification_meter.h"
#include "contrastive/eval/multi_label_meter.h"

#include "eval/evaluation_context.h"
#include "eval/json_text.h"
#include "eval/stopwatch.h"

namespace contrastive::eval::detail {
namespace {

using nlohmann::ordered_json;

/// What one set of prompts makes of the images.
class ZeroShotScores {
 public:
  ZeroShotScores(const EvaluationTask& task, const data::ClassificationSet& set)
      : task_(task),
        set_(set),
        meter_(num_classes(), task.merge_duplicates ? first_of_same_name(set.class_names) : std::vector<int64_t>()),
        multi_label_(num_classes()) {}

  void add(const torch::Tensor& scores, const FeatureBatch& batch) {
    if (ranks_images()) {
      multi_label_.add(scores, batch.label_lists);
    } else if (set_.is_multi_label) {
      meter_.add(scores, batch.label_lists);
    } else {
      meter_.add(scores, batch.labels);
    }
  }

  /// To be called on all ranks. Throws: DataError if the class names seem to be in another order than the labels.
  void report(const distributed::ProcessGroup& group, EvaluationResult& result) {
    if (ranks_images()) {
      multi_label_.add_ranks(group);
      report_multi_label(result);
      return;
    }
    meter_.add_ranks(group);
    check_class_order();
    report_classes(result);
  }

 private:
  int64_t num_classes() const { return static_cast<int64_t>(set_.class_names.size()); }

  /// A set with several labels an image is about the order of the images, unless the task brought the labels: then any
  /// of them is right.
  bool ranks_images() const { return set_.is_multi_label && task_.labels.empty(); }

  void report_multi_label(EvaluationResult& result) const {
    const auto metrics = multi_label_.metrics();
    result.num_samples = metrics.num_samples;
    result.metrics = {{"mean_average_precision", metrics.mean_average_precision},
                      {"mean_average_precision_11_point", metrics.mean_eleven_point}};
    result.shown = {"mean_average_precision", "mean_average_precision_11_point"};
    ordered_json details{{"num_classes_without_positives", metrics.num_classes_without_positives}};
    for (size_t i = 0; task_.per_class && i < metrics.classes.size(); ++i) {
      const auto& each = metrics.classes[i];
      details["per_class"].push_back({{"class", i},
                                      {"name", set_.class_names[i]},
                                      {"positives", each.positives},
                                      {"average_precision", json_of(each.average_precision)},
                                      {"average_precision_11_point", json_of(each.eleven_point)}});
    }
    result.details = json_text(details);
  }

  void report_classes(EvaluationResult& result) const {
    const auto metrics = meter_.metrics();
    result.num_samples = metrics.num_samples;
    result.metrics = {{"acc1", metrics.top1_accuracy},
                      {"acc5", metrics.top5_accuracy},
                      {"mean_per_class_recall", metrics.mean_per_class_recall},
                      {"mean_per_class_accuracy", metrics.mean_per_class_recall},
                      {"mean_acc1_acc5", metrics.mean_top1_top5}};
    result.shown = {"acc1", "acc5", "mean_per_class_recall"};
    if (metrics.roc_auc) {
      result.metrics.emplace_back("roc_auc", *metrics.roc_auc);
      result.shown.emplace_back("roc_auc");
    }
    ordered_json details = ordered_json::object();
    if (metrics.num_unlabelled > 0) details["num_unlabelled"] = metrics.num_unlabelled;
    if (task_.per_class) details["per_class"] = class_table();
    if (task_.confusion) details["confusion"] = confusion_list();
    if (!details.empty()) result.details = json_text(details);
    if (is_near_chance(metrics.top1_accuracy, num_classes(), metrics.num_samples)) {
      result.hints.push_back(fmt::format(
          "acc1 is near chance ({:.2f} % of {} classes): usual causes are weights run with another activation (--model "
          "NAME or NAME-quickgelu), class names in another order than the labels, another mean and std than in "
          "training "
          "(--preprocess), or weights of an untrained model",
          metrics.top1_accuracy * 100, num_classes()));
    }
    if (const auto hint = duplicates_hint()) result.hints.push_back(*hint);
  }

  ordered_json class_table() const {
    auto table = ordered_json::array();
    const auto counts = meter_.class_counts();
    for (size_t i = 0; i < counts.size(); ++i) {
      table.push_back({{"class", i},
                       {"name", set_.class_names[i]},
                       {"samples", counts[i].samples},
                       {"hits", counts[i].hits},
                       {"recall", json_of(counts[i].recall())},
                       {"predicted", counts[i].predicted},
                       {"precision", json_of(counts[i].precision())}});
    }
    return table;
  }

  ordered_json confusion_list() const {
    auto list = ordered_json::array();
    for (const auto& [pair, count] : meter_.confusion()) list.push_back({pair.first, pair.second, count});
    return list;
  }

  std::optional<std::string> duplicates_hint() const {
    if (task_.merge_duplicates) return std::nullopt;
    const auto first = first_of_same_name(set_.class_names);
    std::vector<std::string> examples;
    for (size_t i = 0; i < first.size(); ++i) {
      if (first[i] == static_cast<int64_t>(i)) continue;
      examples.push_back(fmt::format("\"{}\" ({} and {})", set_.class_names[i], first[i], i));
    }
    if (examples.empty()) return std::nullopt;
    const auto count = examples.size();
    examples.resize(std::min<size_t>(count, 3));
    return fmt::format(
        "{} class names occur again: {}: of equal scores the first class wins; --merge-duplicates counts "
        "classes of the same name as one",
        count, fmt::join(examples, ", "));
  }

  void check_class_order() const {
    if (task_.accept_class_order) return;
    const auto suspicion = suspect_class_order(meter_.confusion());
    if (!suspicion) return;
    std::vector<std::string> examples;
    for (const auto& each : suspicion->examples) {
      examples.push_back(fmt::format("{} of {} images labelled {} (\"{}\") are taken for {} (\"{}\")", each.count,
                                     each.samples, each.label, name_of(each.label), each.predicted,
                                     name_of(each.predicted)));
    }
    throw DataError(fmt::format(
        "[{}] the class names seem to be in another order than the labels: {:.1f} % of the images are right, but "
        "{:.1f} % "
        "would be if every label had the name that fits it best; {}; --accept-class-order reports the score all the "
        "same",
        set_.name, suspicion->accuracy * 100, suspicion->matched_accuracy * 100, fmt::join(examples, ", ")));
  }

  const std::string& name_of(int64_t label) const { return set_.class_names.at(static_cast<size_t>(label)); }

  static ordered_json json_of(const std::optional<double>& value) {
    return value ? ordered_json(*value) : ordered_json(nullptr);
  }

  const EvaluationTask& task_;
  const data::ClassificationSet& set_;
  ClassificationMeter meter_;
  MultiLabelMeter multi_label_;
};

}  // namespace

std::vector<EvaluationResult> run_zero_shot(EvaluationContext& context, const EvaluationTask& task,
                                            const EvaluationData& data) {
  const auto& set = *data.test;
  std::vector<ClassEmbeddings> classifiers;
  std::vector<ZeroShotScores> scores;
  std::vector<double> prompts_per_s(data.prompts.size());
  for (size_t i = 0; i < data.prompts.size(); ++i) {
    classifiers.push_back(context.classifier(data.prompts[i], prompts_per_s[i]));
    scores.emplace_back(task, set);
  }
  const Stopwatch watch;
  const auto use = [&](const FeatureBatch& batch) {
    for (size_t i = 0; i < classifiers.size(); ++i) scores[i].add(classifiers[i].scores(batch.features), batch);
  };
  const auto skipped = encode_images(context.model, context.preprocess, *set.source, 0, set.source->size(),
                                     context.image_pass(FeatureStage::embedding), context.group, use);
  const auto images_per_s = static_cast<double>(set.source->size()) / watch.seconds();
  std::vector<EvaluationResult> results;
  for (size_t i = 0; i < scores.size(); ++i) {
    const auto& prompts = data.prompts[i];
    auto result = context.new_result(task, data);
    result.name = result_name(task, data, i);
    result.task = "zeroshot_classification";
    result.prompts = prompts.name;
    result.origin["prompts_sha256"] = prompts.fingerprint();
    if (task.canonicalize) result.origin["canonicalize"] = "true";
    if (task.merge_duplicates) result.origin["merge_duplicates"] = "true";
    result.skipped = skipped;
    result.images_per_s = images_per_s;
    result.prompts_per_s = prompts_per_s[i];
    scores[i].report(context.group, result);
    results.push_back(std::move(result));
  }
  return results;
}

}  // namespace contrastive::eval::detail
