#pragma once

#include <cstdint>

#include "contrastive/core/config_node.h"
#include "contrastive/core/export.h"
#include "contrastive/image/transform.h"

namespace contrastive::eval {

/// open_clip's preprocess_cfg both ways; the image size belongs to the model. Throws: ConfigError.
CONTRASTIVE_API ConfigNode to_node(const image::PreprocessSpec& preprocess);
CONTRASTIVE_API image::PreprocessSpec load_preprocess(const ConfigNode& node, int64_t image_size);

/// transformers' preprocessor_config.json (CLIPImageProcessor, SiglipImageProcessor) both ways.
/// Throws: ConfigError on a size, crop or filter that this library, or that class, doesn't have.
CONTRASTIVE_API image::PreprocessSpec load_hf_preprocess(const ConfigNode& node, int64_t image_size);
CONTRASTIVE_API ConfigNode to_hf_preprocess(const image::PreprocessSpec& preprocess);

}  // namespace contrastive::eval
