#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "contrastive/distributed/process_group.h"
#include "contrastive/eval/evaluation_result.h"
#include "contrastive/eval/evaluation_task.h"
#include "contrastive/eval/evaluator.h"
#include "contrastive/eval/image_pass.h"
#include "contrastive/eval/zero_shot.h"
#include "contrastive/image/transform.h"
#include "contrastive/models/clip_model.h"
#include "contrastive/text/tokenizer.h"

#include "eval/evaluation_data.h"

namespace contrastive::eval::detail {

/// What every kind of task needs: the model and how to use it.
struct EvaluationContext {
  models::ClipModel model{nullptr};
  image::PreprocessSpec preprocess;
  std::shared_ptr<const text::Tokenizer> tokenizer;
  EvaluatorOptions options;
  distributed::ProcessGroup group;

  const char* precision() const { return options.bf16 ? "amp_bf16" : "fp32"; }

  /// Throws: ConfigError if there is none.
  const text::Tokenizer& need_tokenizer() const;

  /// Digests of the whole model, and of what makes text features: all weights are read once.
  const std::string& model_digest();
  const std::string& text_digest();

  std::string preprocessing() const;  ///< in words
  ImagePassOptions image_pass(FeatureStage stage) const;
  std::function<void(int64_t, int64_t)> progress(const std::string& what) const;

  /// With all that is known before the work.
  EvaluationResult new_result(const EvaluationTask& task, const EvaluationData& data) const;

  /// From the cache if there is one that holds it. `prompts_per_s`: how fast it was built, or 0.
  ClassEmbeddings classifier(const ClassPrompts& prompts, double& prompts_per_s);

 private:
  std::optional<std::string> model_digest_;
  std::optional<std::string> text_digest_;
};

std::vector<EvaluationResult> run_zero_shot(EvaluationContext& context, const EvaluationTask& task,
                                            const EvaluationData& data);
std::vector<EvaluationResult> run_retrieval(EvaluationContext& context, const EvaluationTask& task,
                                            const EvaluationData& data);
std::vector<EvaluationResult> run_linear_probe(EvaluationContext& context, const EvaluationTask& task,
                                               const EvaluationData& data);
std::vector<EvaluationResult> run_few_shot(EvaluationContext& context, const EvaluationTask& task,
                                           const EvaluationData& data);

/// The name of a result: the task's, and the prompts' if there are several.
std::string result_name(const EvaluationTask& task, const EvaluationData& data, size_t number);

}  // namespace contrastive::eval::detail
