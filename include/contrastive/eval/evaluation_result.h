#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/eval/image_pass.h"

namespace contrastive::eval {

/// What one evaluation found. Shares lie in [0, 1].
struct EvaluationResult {
  std::string name;  ///< of the task, and of its prompts if it has several
  std::string dataset;
  std::string task;     ///< CLIP_benchmark's name: zeroshot_classification, zeroshot_retrieval, linear_probe, ...
  std::string prompts;  ///< "" where there are none
  std::vector<std::pair<std::string, double>> metrics;
  std::vector<std::string> shown;  ///< metrics that people are shown; the first stands for the result in tables
  int64_t num_samples = 0;
  SkippedSamples skipped;
  double seconds = 0;                         ///< all of the task, whose results may be several
  double images_per_s = 0;                    ///< of the pass over the images; 0: not measured
  double prompts_per_s = 0;                   ///< of building the classifier; 0: it was there
  std::vector<std::string> hints;             ///< what looks wrong, in words
  std::map<std::string, std::string> origin;  ///< what it was made of: digests, settings
  std::string details;                        ///< a JSON object with what else there is; "": nothing
  std::string key;  ///< digest of all that decides the result; "" if it can't be told (a model in training)

  /// Null if there is no such metric.
  CONTRASTIVE_API const double* metric(const std::string& metric_name) const;
};

/// Whom a result is about, and how it was asked for.
struct EvaluationSubject {
  std::string model;       ///< a shipped model's name, or the checkpoint
  std::string pretrained;  ///< the weights
  std::string label;       ///< short, unique among those compared
  std::string command;
};

/// A JSON object whose first keys are CLIP_benchmark's: dataset, model, pretrained, task, metrics, language.
CONTRASTIVE_API std::string to_json(const EvaluationResult& result, const EvaluationSubject& subject);

/// What to_json wrote, as far as tables need it. Throws: DataError naming the file.
CONTRASTIVE_API EvaluationResult read_result(const std::filesystem::path& file);

/// A result in a line: "cifar10: acc1 80.36 %, acc5 99.12 %, mean_per_class_recall 80.37 %, of 5000 images".
CONTRASTIVE_API std::string summary(const EvaluationResult& result);

/// The results of one subject, or why one is missing.
struct SubjectResults {
  std::string label;
  std::vector<EvaluationResult> results;
};

/// One line a metric of every result: subject,name,dataset,task,prompts,metric,value.
CONTRASTIVE_API std::string results_csv(const std::vector<SubjectResults>& subjects);

/// Text for people: a row a result with its headline metric in percent, a column a subject, and for each kind of task
/// (and prompts) the mean over the rows that all subjects have.
CONTRASTIVE_API std::string results_table(const std::vector<SubjectResults>& subjects);

}  // namespace contrastive::eval
