#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/eval/evaluation_result.h"
#include "contrastive/eval/evaluation_task.h"
#include "contrastive/eval/evaluator.h"

namespace contrastive::eval {

/// Many evaluations to be run together.
struct Suite {
  std::vector<EvaluationTask> tasks;  ///< each with its name, all different
};

/// Reads a suite:
///
///     root: /data                      # what relative paths of the tasks begin with; without it the working directory
///     defaults: {canonicalize: true}   # settings of every task that doesn't say otherwise
///     tasks:
///       - {data: cifar10, prompts: [dataset, clip_80]}
///       - {task: retrieval, data: coco}
///
/// Throws: ConfigError with file:line:column of every mistake.
CONTRASTIVE_API Suite load_suite(const std::filesystem::path& file);

/// An evaluation that failed, with its message.
struct FailedTask {
  std::string name;
  std::string message;
};

struct SuiteOutcome {
  std::vector<EvaluationResult> results;  ///< in the order of the tasks
  std::vector<FailedTask> failures;
  int64_t num_kept = 0;  ///< results that an earlier run had left
};

struct SuiteHooks {
  std::function<void(const EvaluationResult& result, bool was_kept)> on_result = {};
  std::function<void(const FailedTask& failure)> on_failure = {};
};

/// Runs the tasks one after the other; one that fails is reported and the rest goes on. Every result is written to
/// <folder>/<name>.json at once; one that is there already, made from the same model, data, prompts and settings, is
/// taken as it is. Without a folder ("") nothing is written or kept. The first rank writes.
CONTRASTIVE_API SuiteOutcome run_suite(const Suite& suite, Evaluator& evaluator, const EvaluationSubject& subject,
                                       const std::filesystem::path& folder, const SuiteHooks& hooks,
                                       const distributed::ProcessGroup& group = {});

}  // namespace contrastive::eval
