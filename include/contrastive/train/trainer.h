#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "contrastive/core/export.h"
#include "contrastive/train/metrics.h"
#include "contrastive/train/run_directory.h"
#include "contrastive/train/run_options.h"

namespace contrastive::train {

/// What a run consists of, known once its parts are built; for the lines that a program prints at the start.
struct RunSummary {
  int64_t parameters = 0;
  int64_t train_samples = 0;
  int64_t total_steps = 0;
  int64_t first_step = 0;  ///< above 0: resumed there
  std::string device;
  double chance_loss = 0;  ///< ln(batch): what a model that knows nothing gets
};

/// How a program follows a run. Each may be empty. All are called on the thread of Trainer::run.
struct TrainerHooks {
  std::function<void(const StepMetrics&)> on_step;  ///< after every step
  std::function<void(const EvaluationMetrics&)> on_evaluation;
  std::function<void(const std::string& folder)> on_checkpoint;
  std::function<bool()> stop_requested;  ///< asked before every step
};

enum class RunOutcome { finished, stopped };

/// One training run on this machine, from its options to its last checkpoint.
///
/// Interrupted and resumed, it ends with the same bits as a run that was never stopped, given the same machine and
/// number of threads: everything that a step depends on is a pure function of the options and the step number, or is
/// in the checkpoint.
class CONTRASTIVE_API Trainer {
 public:
  /// Opens the data, builds the model and the optimiser, and loads the checkpoint to resume from.
  /// Throws: ConfigError, DataError, CheckpointError.
  Trainer(const RunOptions& options, const ResumeRequest& resume, TrainerHooks hooks);
  ~Trainer();
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  RunSummary summary() const;

  /// Trains to the last step, or until a stop is requested; saves in both cases.
  /// Throws: TrainingError if a loss or gradient is not finite (on_non_finite: stop); DataError, CheckpointError.
  RunOutcome run();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Opens a classification set as configs name it: a folder in CLIP_benchmark's layout, or `synthetic`.
CONTRASTIVE_API data::ClassificationSet open_classification_set(const std::string& name,
                                                                const SyntheticDataOptions& synthetic);

}  // namespace contrastive::train
