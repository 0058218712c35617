#pragma once

#include <string>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/core/lazy_tensor.h"
#include "contrastive/models/model_config.h"

/// Between the names of tensors in published checkpoints and this library's, which are open_clip's. Everything works on
/// tensors that are made when asked for: renaming, transposing and splitting cost nothing, packing one tensor.
namespace contrastive::models {

/// Whose names and layout a set of weights has. OpenAI's are open_clip's, with some entries more.
enum class WeightLayout { open_clip, openai, hf_clip, hf_siglip };

/// Throws: CheckpointError if the names are none of these.
CONTRASTIVE_API WeightLayout detect_layout(const std::vector<LazyTensor>& tensors);

/// Strips a prefix that all names share: "module." (distributed training), "_orig_mod." (compiled models), "model.".
CONTRASTIVE_API std::vector<LazyTensor> strip_wrapper_prefix(std::vector<LazyTensor> tensors);

/// Any layout to open_clip's names. Entries that are no weights (position ids, OpenAI's sizes) are left out.
/// With `custom_text` the text tower's names start with `text.`, else they don't, whatever the source has.
/// Throws: CheckpointError if a q, k, v triple is incomplete or doesn't fit together.
CONTRASTIVE_API std::vector<LazyTensor> to_open_clip_names(std::vector<LazyTensor> tensors, WeightLayout layout,
                                                           bool custom_text);

/// open_clip's names to those of transformers' CLIPModel. Throws: ConfigError if that class can't hold the model.
CONTRASTIVE_API std::vector<LazyTensor> to_hf_clip_names(const std::vector<LazyTensor>& tensors,
                                                         const ModelConfig& config);

/// open_clip's names to OpenAI's, in the dtypes of its files: weights and biases of convolutions, linear layers and
/// attention, `proj` and `text_projection` fp16, the rest fp32.
/// Source: the released code, model.py, convert_weights. Throws: ConfigError if OpenAI's code can't hold the model.
CONTRASTIVE_API std::vector<LazyTensor> to_openai_weights(const std::vector<LazyTensor>& tensors,
                                                          const ModelConfig& config);

/// Whether fp16 and fp32 are distributed over the tensors (open_clip's names) as in OpenAI's files.
CONTRASTIVE_API bool has_openai_dtypes(const std::vector<LazyTensor>& tensors);

/// The config that OpenAI's loader infers from shapes (open_clip's names); heads are width / 64, the activation is
/// QuickGELU. Source: the released code, model.py, build_model.
/// Throws: CheckpointError if a tensor it is inferred from is missing or has an impossible shape.
CONTRASTIVE_API ModelConfig infer_openai_config(const std::vector<LazyTensor>& tensors);

}  // namespace contrastive::models
