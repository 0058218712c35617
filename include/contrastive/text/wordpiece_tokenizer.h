#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/text/clean_text.h"
#include "contrastive/text/tokenizer.h"

namespace contrastive::text {

/// What becomes of BERT's separator at the end of a text. `added`: it is there, also when the text is cut.
/// `blanked`: as `added`, but padding stands in its place, also for separators that the text spells out (CLIPA).
/// `omitted`: the text may take its place (LiT).
enum class Separator { added, blanked, omitted };

struct WordPieceOptions {
  /// Before BERT's own cleaning; open_clip's wrapper of Hugging Face tokenizers has `whitespace`.
  Cleaning cleaning = Cleaning::none;
  /// Lower case, accents removed (bert-base-uncased).
  bool lower_case = true;
  bool add_cls = true;
  Separator separator = Separator::added;
};

/// CLIPA's use of bert-base-uncased. Source: open_clip's HFTokenizer with strip_sep_token.
CONTRASTIVE_API WordPieceOptions clipa_tokenizer_options();

/// LiT's use of bert-base-uncased: class token, no separator. Source: Zhai et al. 2022 and the released models.
CONTRASTIVE_API WordPieceOptions lit_wordpiece_options();

/// BERT's tokenizer: words and punctuation marks, each cut into the longest pieces that the vocabulary has.
/// [CLS], [SEP], [PAD], [UNK] and [MASK] spelled out in a text are these ids.
/// Source: Devlin et al. 2019; ids equal those of transformers' BertTokenizer.
class CONTRASTIVE_API WordPieceTokenizer : public Tokenizer {
 public:
  /// `vocab_file`: vocab.txt, one piece a line; the line number from 0 is the id.
  /// Throws: DataError if it can't be read, repeats a piece, or lacks [PAD], [UNK], [CLS] or [SEP].
  explicit WordPieceTokenizer(const std::filesystem::path& vocab_file, const WordPieceOptions& options = {});
  ~WordPieceTokenizer() override;
  WordPieceTokenizer(WordPieceTokenizer&&) noexcept;
  WordPieceTokenizer& operator=(WordPieceTokenizer&&) noexcept;

  int64_t tokenize(std::string_view text, std::span<int32_t> row, bool truncate = true) const override;
  std::vector<int32_t> encode(std::string_view text) const override;

  /// The pieces, joined by spaces where they don't continue a word.
  std::string decode(std::span<const int32_t> ids) const override;

  int64_t vocab_size() const override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace contrastive::text
