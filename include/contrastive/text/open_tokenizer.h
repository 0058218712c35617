#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "contrastive/core/export.h"
#include "contrastive/text/tokenizer.h"

namespace contrastive::text {

/// What a model says about its tokenizer; the fields of open_clip's text_cfg have their names.
struct TokenizerSpec {
  /// Where the model lies: looked at for spiece.model and tokenizer.model (SentencePiece) or vocab.txt (BERT). CLIP's
  /// own vocabulary is shipped with the library.
  std::filesystem::path folder;
  std::filesystem::path file;  ///< the vocabulary itself, under whatever name; "": looked for in the folder
  int64_t context_length = 77;
  int64_t vocab_size = 49408;
  std::string hf_tokenizer_name;  ///< empty: CLIP's byte pairs
  std::string clean;              ///< lower, whitespace or canonicalize; empty: the kind's own
  bool strip_sep_token = false;
  /// "lit": as the LiT models were trained. BERT: no separator; SentencePiece: the text as it is, padding with the end
  /// mark, so that a row always ends with it. "": open_clip's.
  std::string policy;
};

/// The tokenizer that open_clip takes for a model: CLIP's byte pairs without a name, WordPiece for BERT's names,
/// SentencePiece for others (SigLIP, SigLIP 2, T5).
/// Throws: ConfigError if a file is missing (naming those looked for), the fields contradict one another, or the
/// tokenizer has ids that the model has not; DataError if a file is damaged.
CONTRASTIVE_API std::unique_ptr<Tokenizer> open_tokenizer(const TokenizerSpec& spec);

}  // namespace contrastive::text
