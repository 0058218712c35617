#pragma once

#include <filesystem>
#include <memory>

#include "contrastive/data/source.h"
#include "contrastive/data/train_loader.h"
#include "contrastive/distributed/process_group.h"
#include "contrastive/models/model_config.h"
#include "contrastive/text/tokenizer.h"
#include "contrastive/train/run_options.h"

/// What a run reads: samples, vocabulary.
namespace contrastive::train::detail {

/// The vocabulary of a model that doesn't use CLIP's, copied into the run once; checkpoints carry it. Ranks that don't
/// write read the original, unless only the copy is there. Returns: the folder (or weights) to open it from.
std::filesystem::path keep_tokenizer(const RunOptions& options, const models::ModelConfig& config, bool writes);

/// The shards, the synthetic set, or the cached embeddings. Throws: ConfigError if the cache is not of this run's
/// tower, preprocessing, data or tokenizer.
std::shared_ptr<const data::SampleSource> open_training_data(const RunOptions& options,
                                                             const models::ModelConfig& config,
                                                             const text::Tokenizer& tokenizer);

data::TrainLoaderOptions loader_options(const RunOptions& options, const models::ModelConfig& config,
                                        const distributed::ProcessGroup& group, torch::Device device,
                                        int64_t first_step);

/// The steps of the whole run.
int64_t count_steps(const TrainOptions& options, int64_t num_samples);

}  // namespace contrastive::train::detail
