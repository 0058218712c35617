#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "contrastive/core/export.h"
#include "contrastive/eval/evaluation_result.h"
#include "contrastive/eval/zero_shot.h"

namespace contrastive::train {

/// What one training step reports; times are averages since the report before.
struct StepMetrics {
  int64_t step = 0;  ///< steps done, this one included
  int64_t samples_seen = 0;
  double loss = 0;         ///< before the update
  double accuracy = 0;     ///< share of images whose own text scores highest in the batch, in [0, 1]
  double logit_scale = 0;  ///< exponentiated, before the update
  double lr = 0;
  double grad_norm = 0;  ///< L2, before clipping
  double samples_per_s = 0;
  double data_wait_ms = 0;      ///< waiting for the batch
  double communication_ms = 0;  ///< waiting for other ranks
  double step_ms = 0;           ///< the whole step, waiting included
  double read_mb = 0;           ///< read from shards by this rank, a step
  int64_t skipped_samples = 0;
  int64_t skipped_steps = 0;
};

struct EvaluationMetrics {
  int64_t step = 0;
  int64_t samples_seen = 0;
  std::string dataset;
  eval::ClassificationMetrics zero_shot;
  double seconds = 0;
};

/// One result of a run's suite.
struct SuiteMetrics {
  int64_t step = 0;
  int64_t samples_seen = 0;
  eval::EvaluationResult result;
};

/// Writes metrics.jsonl (one JSON object a line, step and evaluation objects alike) and the same as TensorBoard events.
/// A line that can't be written (disk full) is kept and tried again with the next; the first failure is logged.
class CONTRASTIVE_API MetricsWriter {
 public:
  /// Continues the run's files behind `step`: lines of later steps, left by a run that was killed, are dropped.
  /// Throws: Error if the files can't be opened.
  MetricsWriter(const std::filesystem::path& run_directory, int64_t step, bool tensorboard);
  ~MetricsWriter();
  MetricsWriter(const MetricsWriter&) = delete;
  MetricsWriter& operator=(const MetricsWriter&) = delete;

  void write(const StepMetrics& metrics);
  void write(const EvaluationMetrics& metrics);
  void write(const SuiteMetrics& metrics);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace contrastive::train
