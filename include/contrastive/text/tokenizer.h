#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "contrastive/core/export.h"

namespace contrastive::text {

/// Turns captions into ids of a vocabulary and back.
/// Thread-safe: any number of threads may call the const members at once.
class CONTRASTIVE_API Tokenizer {
 public:
  virtual ~Tokenizer();

  /// Fills `row` (its size is the context length) with the ids of a text, the tokenizer's own marks (start, end, ...)
  /// and padding; returns the number of ids before the padding. A text that does not fit is cut.
  /// Throws: DataError instead of cutting when `truncate` is false; ConfigError if `row` has no room for the marks.
  virtual int64_t tokenize(std::string_view text, std::span<int32_t> row, bool truncate = true) const = 0;

  /// The ids of a text, cleaned, without marks and padding. Invalid UTF-8 is read as U+FFFD.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;

  /// The text of ids. Throws: DataError on an id outside the vocabulary.
  virtual std::string decode(std::span<const int32_t> ids) const = 0;

  /// All ids are in [0, vocab_size()).
  virtual int64_t vocab_size() const = 0;

 protected:
  Tokenizer() = default;
  Tokenizer(const Tokenizer&) = default;
  Tokenizer(Tokenizer&&) = default;
  Tokenizer& operator=(const Tokenizer&) = default;
  Tokenizer& operator=(Tokenizer&&) = default;
};

/// Tokenizes N texts into `rows` [N * T], row by row, on up to `threads` threads; texts that do not fit are cut. The
/// result does not depend on the number of threads.
/// Args: context_length T, at least 1; threads at least 1.
/// Throws: ConfigError if a size is wrong; the error of the first text that fails, after all threads have ended.
CONTRASTIVE_API void tokenize_all(const Tokenizer& tokenizer, std::span<const std::string> texts,
                                  int64_t context_length, std::span<int32_t> rows, int threads);

}  // namespace contrastive::text
