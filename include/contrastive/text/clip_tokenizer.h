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

/// Which literal markers inside a text become the start and end ids.
/// `open_clip`: <start_of_text>, <end_of_text>. `openai`: <|startoftext|>, <|endoftext|>.
/// `none`: markers are ordinary text; for captions that can't be trusted.
enum class SpecialMarkers { open_clip, openai, none };

struct ClipTokenizerOptions {
  SpecialMarkers special_markers = SpecialMarkers::open_clip;
  /// Words whose ids are remembered, at most, beside those of the vocabulary; the bound keeps memory flat on any
  /// corpus. 0 remembers none.
  int64_t word_cache_capacity = 1 << 16;
  /// `lower`, or `canonicalize` for models that were trained without punctuation.
  Cleaning cleaning = Cleaning::lower;
};

/// CLIP's byte-pair tokenizer: cleaning, splitting and merging exactly as open_clip's SimpleTokenizer.
/// Thread-safe: any number of threads may call the const members at once.
/// Source: Radford et al. 2021, section 2.4; the released tokenizer and vocabulary.
class CONTRASTIVE_API ClipTokenizer : public Tokenizer {
 public:
  static constexpr int64_t kVocabSize = 49408;
  static constexpr int32_t kStartOfText = 49406;
  static constexpr int32_t kEndOfText = 49407;

  /// `merges_file`: bpe_simple_vocab_16e6.txt, plain or gzip.
  /// Throws: DataError if it can't be read or is not CLIP's merges file; ConfigError on a negative cache capacity or
  /// a cleaning that keeps upper case.
  explicit ClipTokenizer(const std::filesystem::path& merges_file, const ClipTokenizerOptions& options = {});
  ~ClipTokenizer() override;
  ClipTokenizer(ClipTokenizer&&) noexcept;
  ClipTokenizer& operator=(ClipTokenizer&&) noexcept;

  /// The ids of a text, without start, end and padding. Invalid UTF-8 is replaced by U+FFFD.
  std::vector<int32_t> encode(std::string_view text) const override;

  /// Fills `row` (its size is the context length, at least 2) with start, the ids, end and zero padding; returns the
  /// number of ids written before the padding. A text that does not fit is cut and the last id becomes the end.
  /// Throws: DataError instead of cutting when `truncate` is false; ConfigError if `row` is shorter than 2.
  int64_t tokenize(std::string_view text, std::span<int32_t> row, bool truncate = true) const override;

  /// The text of ids, markers included (those of open_clip for `none`); "</w>" becomes a space, broken UTF-8 U+FFFD.
  /// Throws: DataError on an id outside the vocabulary.
  std::string decode(std::span<const int32_t> ids) const override;

  int64_t vocab_size() const override { return kVocabSize; }

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace contrastive::text
