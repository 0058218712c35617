#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/text/clean_text.h"
#include "contrastive/text/tokenizer.h"

namespace contrastive::text {

struct SentencePieceOptions {
  Cleaning cleaning = Cleaning::none;
  bool add_bos = false;
  bool add_eos = true;
  /// A text that is cut ends with the end id all the same.
  bool keep_eos_when_truncated = true;
  /// Unset: the model's end id.
  std::optional<int32_t> pad_id;
  /// Ids that the text tower has, if fewer than the model: extra ids above read as unknown. 0: all of the model.
  int64_t vocab_size = 0;
};

/// SigLIP: canonicalized text, end id, padding with id 1 (which is the end id of its models); 64 or 16 ids.
/// Source: big_vision; open_clip's SigLipTokenizer.
CONTRASTIVE_API SentencePieceOptions siglip_tokenizer_options();

/// SigLIP 2 (Gemma's model): as SigLIP, but padding with id 0. Source: open_clip's SigLipTokenizer.
CONTRASTIVE_API SentencePieceOptions siglip2_tokenizer_options();

/// LiT: text as it is, end id, padding with the end id, so the last id of a row is always the end; 16 ids.
/// Source: Zhai et al. 2022 and the released models' text preprocessing.
CONTRASTIVE_API SentencePieceOptions lit_sentencepiece_options();

/// A SentencePiece model (unigram or BPE, byte fallback included) with the policies around it.
/// Source: Kudo and Richardson 2018; the sentencepiece library does the splitting.
class CONTRASTIVE_API SentencePieceTokenizer : public Tokenizer {
 public:
  /// `model_file`: spiece.model, tokenizer.model, ... The file need not be trusted.
  /// Throws: DataError if it can't be read or is no valid model; ConfigError if the options ask for an id that the
  /// model lacks.
  explicit SentencePieceTokenizer(const std::filesystem::path& model_file, const SentencePieceOptions& options = {});
  ~SentencePieceTokenizer() override;
  SentencePieceTokenizer(SentencePieceTokenizer&&) noexcept;
  SentencePieceTokenizer& operator=(SentencePieceTokenizer&&) noexcept;

  int64_t tokenize(std::string_view text, std::span<int32_t> row, bool truncate = true) const override;
  std::vector<int32_t> encode(std::string_view text) const override;

  /// Control pieces (start, end, padding) leave no text.
  std::string decode(std::span<const int32_t> ids) const override;

  int64_t vocab_size() const override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace contrastive::text
