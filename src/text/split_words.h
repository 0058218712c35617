#pragma once

#include <cstddef>
#include <string_view>

#include "contrastive/text/clip_tokenizer.h"

namespace contrastive::text {

enum class PieceKind { word, start_marker, end_marker };

/// One match of the tokenizer's pattern: a view into the text.
struct Piece {
  std::string_view text;
  PieceKind kind;
};

/// The literal spelling of the start and end ids. `none` has that of open_clip, for writing only.
struct MarkerNames {
  std::string_view start;
  std::string_view end;
};
MarkerNames marker_names(SpecialMarkers markers);

/// Splits a cleaned text (lower case; its only white space is ' ') into the pieces that are merged on their own:
/// a marker; 's 't 're 've 'm 'll 'd; a run of letters; one number; a run of other characters.
/// Source: the released tokenizer (Radford et al. 2021).
class WordSplitter {
 public:
  WordSplitter(std::string_view cleaned_text, SpecialMarkers markers) : text_(cleaned_text), markers_(markers) {}

  /// False at the end of the text.
  bool next(Piece& piece);

 private:
  size_t marker_length(Piece& piece) const;
  size_t contraction_length() const;
  size_t run_length() const;

  std::string_view text_;
  SpecialMarkers markers_;
};

}  // namespace contrastive::text
