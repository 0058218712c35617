#include "contrastive/eval/evaluator.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>
#include <torch/utils.h>

#include "contrastive/core/error.h"
#include "contrastive/core/options.h"
#include "contrastive/core/version.h"

#include "eval/agree.h"
#include "eval/evaluation_context.h"
#include "eval/evaluation_data.h"
#include "eval/fingerprint.h"
#include "eval/stopwatch.h"

namespace contrastive::eval {

class Evaluator::Prepared {
 public:
  EvaluationTask task;
  detail::EvaluationData data;
};

struct Evaluator::Impl {
  detail::EvaluationContext context;
};

Evaluator::Evaluator(models::ClipModel model, const image::PreprocessSpec& preprocess,
                     std::shared_ptr<const text::Tokenizer> tokenizer, const EvaluatorOptions& options,
                     const distributed::ProcessGroup& group)
    : impl_(std::make_unique<Impl>()) {
  auto& context = impl_->context;
  context.model = std::move(model);
  context.preprocess = preprocess;
  context.tokenizer = std::move(tokenizer);
  context.options = options;
  context.group = group;
}

Evaluator::~Evaluator() = default;
Evaluator::Evaluator(Evaluator&&) noexcept = default;

std::shared_ptr<const Evaluator::Prepared> Evaluator::prepare(const EvaluationTask& task) {
  auto prepared = std::make_shared<Prepared>();
  prepared->task = task;
  detail::agree(impl_->context.group, [&] {
    prepared->data = detail::open_evaluation_data(task);
    if (prepared->task.name.empty()) prepared->task.name = fmt::format("{}_{}", prepared->data.name(), task.task);
  });
  return prepared;
}

std::vector<std::string> Evaluator::result_names(const Prepared& prepared) {
  std::vector<std::string> names;
  const auto count = std::max<size_t>(1, prepared.data.prompts.size());
  for (size_t i = 0; i < count; ++i) names.push_back(detail::result_name(prepared.task, prepared.data, i));
  return names;
}

std::string Evaluator::key(const Prepared& prepared) {
  auto& context = impl_->context;
  auto text =
      fmt::format("{}\n{}\n{}\n{}\nskip {}\n{}", version(), context.model_digest(), context.precision(),
                  prepared.data.state(), context.options.skip_bad_samples, to_yaml(options_to_node(prepared.task)));
  for (const auto& prompts : prepared.data.prompts) text += prompts.fingerprint() + "\n";
  return detail::digest_of(text);
}

std::vector<EvaluationResult> Evaluator::run(const Prepared& prepared) {
  const detail::Stopwatch watch;
  const auto& task = prepared.task;
  const auto run = task.task == "zero-shot"      ? detail::run_zero_shot
                   : task.task == "retrieval"    ? detail::run_retrieval
                   : task.task == "linear-probe" ? detail::run_linear_probe
                                                 : detail::run_few_shot;
  const torch::NoGradGuard no_grad;
  auto results = run(impl_->context, task, prepared.data);
  for (auto& result : results) result.seconds = watch.seconds();
  return results;
}

}  // namespace contrastive::eval
