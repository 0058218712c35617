#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/distributed/process_group.h"
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
  std::string plan;        ///< a table of what is trained, at which learning rate and weight decay
  double chance_loss = 0;  ///< ln(batch): what a model that knows nothing gets
};

/// How a program follows a run. Each may be empty. All are called on the thread of Trainer::run.
struct TrainerHooks {
  std::function<void(const StepMetrics&)> on_step;  ///< after every step, on every rank, as is on_evaluation
  std::function<void(const EvaluationMetrics&)> on_evaluation;
  std::function<void(const SuiteMetrics&)> on_suite_result;
  std::function<void(const std::string& folder)> on_checkpoint;  ///< when it is complete, on rank 0
  std::function<bool()> stop_requested;  ///< asked before every step; if any rank says yes, all save and stop
};

enum class RunOutcome { finished, stopped };

/// One training run, from its options to its last checkpoint: in this process, or in every process of a group.
///
/// Interrupted and resumed, it ends with the same bits as a run that was never stopped, given the same machine, number
/// of ranks and threads: everything that a step depends on is a pure function of the options and the step number, or is
/// in the checkpoint. Another number of ranks sees the same samples in the same order and gets the same losses to
/// rounding. Rank 0 writes the run's folder; the others only need to read the data and the configuration, and with
/// distributed.shard_optimizer the checkpoints.
class CONTRASTIVE_API Trainer {
 public:
  /// Opens the data, builds the model and the optimiser, and loads the checkpoint to resume from.
  /// `group`: every rank makes a Trainer with the same options. `device`: this rank's; that of the options if absent.
  /// Throws: ConfigError, DataError, CheckpointError, DistributedError.
  Trainer(const RunOptions& options, const ResumeRequest& resume, TrainerHooks hooks,
          const distributed::ProcessGroup& group = {}, std::optional<torch::Device> device = {});
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

/// The device of a config: "cpu", "cuda", or "auto" (a GPU if there is one). Throws: ConfigError if there is none.
CONTRASTIVE_API torch::Device choose_device(const std::string& name);

/// Throws: ConfigError unless the global batch can be split equally over the ranks and the parts of train.accumulate.
CONTRASTIVE_API void check_batch_split(const RunOptions& options, int64_t ranks);

/// Opens a classification set as configs name it: a folder in CLIP_benchmark's layout, or `synthetic`.
CONTRASTIVE_API data::ClassificationSet open_classification_set(const std::string& name,
                                                                const SyntheticDataOptions& synthetic);

}  // namespace contrastive::train
