#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/eval/checkpoint_source.h"

namespace contrastive::eval {

/// What a checkpoint can be written as.
enum class CheckpointFormat {
  open_clip,  ///< a folder: open_clip_config.json, open_clip_model.safetensors
  openai,     ///< one file of torch.save: OpenAI's names, its fp16 and fp32
  hf,         ///< a folder of transformers' CLIPModel: config.json, model.safetensors, preprocessor_config.json, and
              ///< CLIP's tokenizer files if the vocabulary is CLIP's
};

/// Checks the tensors against the config and writes the checkpoint, one tensor at a time. Everything is written beside
/// its place and renamed, the weights first; files that were there are replaced.
/// `may_be_missing`: names of tensors that are left out if the source lacks them.
/// Returns: the files written.
/// Throws: CheckpointError that lists every missing, unexpected and mis-shaped tensor, or the reason of a failed write;
/// ConfigError if the format can't hold the model. Then nothing was written.
CONTRASTIVE_API std::vector<std::filesystem::path> write_checkpoint(
    const std::filesystem::path& path, CheckpointFormat format, const CheckpointSource& source,
    const std::function<bool(const std::string&)>& may_be_missing = {});

}  // namespace contrastive::eval
