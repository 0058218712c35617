#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "contrastive/core/tensor_file.h"
#include "contrastive/models/model_config.h"

/// Which of the two GELUs weights were trained with: loading them with the other one gives no error, only worse
/// results.
namespace contrastive::eval::detail {

/// What this library writes into a weights file beside the tensors: the format's mark, and the activation.
std::map<std::string, std::string> weights_metadata(const models::ModelConfig& config);

/// OpenAI's TorchScript archive or state dict, known by its entries or its distribution of dtypes.
bool is_openai(const TensorFile& weights);

/// Throws: CheckpointError if the file says that its weights belong to the other activation than the config beside it.
void check_recorded_activation(const std::filesystem::path& file, const TensorFile& weights,
                               const models::ModelConfig& config);

/// The same for a named model, where also the origin of the weights counts; logs a warning if nothing is known.
/// Throws: ConfigError.
void check_activation(const std::filesystem::path& file, const TensorFile& weights, const models::ModelConfig& config,
                      const std::string& model_name);

}  // namespace contrastive::eval::detail
