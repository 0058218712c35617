#pragma once

#include <memory>
#include <vector>

#include "contrastive/distributed/process_group.h"
#include "contrastive/eval/evaluator.h"
#include "contrastive/eval/suite.h"
#include "contrastive/train/run_options.h"

namespace contrastive::train::detail {

/// A run's suite of evaluations (eval.suite), again and again on the model as it is.
class SuiteEvaluation {
 public:
  /// Opens every data set once, so that a mistake shows before the run starts. Throws: ConfigError, DataError.
  SuiteEvaluation(const RunOptions& options, models::ClipModel model, const image::PreprocessSpec& preprocess,
                  std::shared_ptr<const text::Tokenizer> tokenizer, const distributed::ProcessGroup& group);

  /// To be called on all ranks. An evaluation that fails is logged and left out.
  std::vector<eval::EvaluationResult> run();

 private:
  eval::Suite suite_;
  eval::Evaluator evaluator_;
  distributed::ProcessGroup group_;
};

}  // namespace contrastive::train::detail
