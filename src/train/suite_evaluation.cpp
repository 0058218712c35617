#include "train/suite_evaluation.h"

#include <utility>

#include <fmt/format.h>

#include "contrastive/core/log.h"

namespace contrastive::train::detail {
namespace {

eval::EvaluatorOptions evaluator_options(const RunOptions& options) {
  eval::EvaluatorOptions result;
  result.batch_size = options.eval.zero_shot.batch_size;
  result.workers = options.data.workers;
  result.bf16 = options.precision == "amp_bf16";
  return result;
}

}  // namespace

SuiteEvaluation::SuiteEvaluation(const RunOptions& options, models::ClipModel model,
                                 const image::PreprocessSpec& preprocess,
                                 std::shared_ptr<const text::Tokenizer> tokenizer,
                                 const distributed::ProcessGroup& group)
    : suite_(eval::load_suite(options.eval.suite)),
      evaluator_(std::move(model), preprocess, std::move(tokenizer), evaluator_options(options), group),
      group_(group) {
  for (auto& task : suite_.tasks) {
    evaluator_.prepare(task);
    // A model that has hardly begun may confuse classes in any way.
    if (task.task == "zero-shot") task.accept_class_order = true;
  }
}

std::vector<eval::EvaluationResult> SuiteEvaluation::run() {
  eval::SuiteHooks hooks;
  hooks.on_failure = [](const eval::FailedTask& failure) {
    log(LogLevel::error, fmt::format("evaluation {} failed: {}", failure.name, failure.message));
  };
  return eval::run_suite(suite_, evaluator_, {}, {}, hooks, group_).results;
}

}  // namespace contrastive::train::detail
