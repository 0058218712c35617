#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/distributed/process_group.h"
#include "contrastive/eval/evaluation_result.h"
#include "contrastive/eval/evaluation_task.h"
#include "contrastive/image/transform.h"
#include "contrastive/models/clip_model.h"
#include "contrastive/text/tokenizer.h"

namespace contrastive::eval {

struct EvaluatorOptions {
  int64_t batch_size = 256;
  int64_t workers = 2;            ///< decoding threads
  bool bf16 = false;              ///< matrix products in bf16
  bool skip_bad_samples = false;  ///< leave out images that can't be read; else the first of them is an error
  std::string cache = {};         ///< folder for classifiers and for features of probes; "": none is kept
  /// What is being done, on the first rank: "images", "prompts", "captions"; items done and in all.
  std::function<void(const std::string& what, int64_t done, int64_t total)> on_progress = {};
};

/// Runs evaluations of one model. To be used by one thread; every rank makes the same calls.
class CONTRASTIVE_API Evaluator {
 public:
  /// The model's device is where it computes; without a tokenizer only probes can be run.
  Evaluator(models::ClipModel model, const image::PreprocessSpec& preprocess,
            std::shared_ptr<const text::Tokenizer> tokenizer, const EvaluatorOptions& options,
            const distributed::ProcessGroup& group = {});
  ~Evaluator();
  Evaluator(Evaluator&&) noexcept;

  /// A task with its data opened and its prompts read.
  class Prepared;

  /// Throws: ConfigError, DataError (on all ranks alike).
  std::shared_ptr<const Prepared> prepare(const EvaluationTask& task);

  /// The names of the results to come, one for each of several prompts.
  static std::vector<std::string> result_names(const Prepared& prepared);

  /// Digest of all that decides the results: model, data, prompts and settings. Reads all weights once.
  std::string key(const Prepared& prepared);

  /// Throws: DataError naming what can't be used (on all ranks alike), also if the class names seem to be in another
  /// order than the labels, unless the task accepts that.
  std::vector<EvaluationResult> run(const Prepared& prepared);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace contrastive::eval
