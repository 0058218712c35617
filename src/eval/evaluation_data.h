#pragma once

#include <optional>
#include <string>
#include <vector>

#include "contrastive/data/classification_set.h"
#include "contrastive/data/retrieval_set.h"
#include "contrastive/eval/class_prompts.h"
#include "contrastive/eval/evaluation_task.h"

namespace contrastive::eval::detail {

/// What a task works on, opened.
struct EvaluationData {
  std::optional<data::ClassificationSet> test;
  std::optional<data::ClassificationSet> train;       ///< of probes
  std::optional<data::ClassificationSet> validation;  ///< of probes, if the task names a split
  std::optional<data::RetrievalSet> pairs;
  std::vector<ClassPrompts> prompts;  ///< of zero-shot

  const std::string& name() const { return pairs ? pairs->name : test->name; }

  /// SHA-256 over samples, labels' names and captions of all sets.
  std::string fingerprint() const;

  /// The same with source_state of all sets.
  std::string state() const;
};

/// SHA-256 over a source's fingerprint and the times its shards were changed at: for what is kept on one machine.
/// Labels corrected in a shard leave its size as it was.
std::string source_state(const data::SampleSource& source);

/// Throws: ConfigError, DataError.
EvaluationData open_evaluation_data(const EvaluationTask& task);

}  // namespace contrastive::eval::detail
