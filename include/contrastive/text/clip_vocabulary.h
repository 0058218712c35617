#pragma once

#include <filesystem>

#include "contrastive/core/export.h"

namespace contrastive::text {

/// Writes CLIP's vocabulary as transformers' CLIPTokenizer reads it: vocab.json, merges.txt, tokenizer_config.json and
/// special_tokens_map.json in `folder`, which is made if need be.
/// `merges_file`: bpe_simple_vocab_16e6.txt, plain or gzip.
/// Throws: DataError if it is not CLIP's merges file; Error if a file can't be written.
CONTRASTIVE_API void write_clip_vocabulary(const std::filesystem::path& folder,
                                           const std::filesystem::path& merges_file);

}  // namespace contrastive::text
