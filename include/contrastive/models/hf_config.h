#pragma once

#include "contrastive/core/config_node.h"
#include "contrastive/core/export.h"
#include "contrastive/models/model_config.h"

namespace contrastive::models {

/// The model that a config.json of transformers describes: CLIPModel (`model_type` clip) or SiglipModel (siglip), with
/// the defaults of transformers 4.57 for what it leaves out.
/// Throws: ConfigError that names the field if the model is another one or a value isn't supported.
CONTRASTIVE_API ModelConfig model_config_from_hf(const ConfigNode& config);

/// The config.json of a CLIPModel. Throws: ConfigError if the activations of the towers differ.
CONTRASTIVE_API ConfigNode to_hf_config(const ModelConfig& config);

}  // namespace contrastive::models
