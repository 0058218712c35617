#include "text/split_words.h"

#include <cstdint>

#include "text/unicode.h"

namespace contrastive::text {

namespace {

enum class CharacterClass { letter, number, separator, other };

/// U+017F, which equals 's' when case is ignored and survives lower-casing.
constexpr std::string_view kLongS = "\u017F";

/// U+0345 is a mark whose case variants are letters: with case ignored it is in neither of the pattern's classes, so
/// the reference drops it like white space.
constexpr char32_t kYpogegrammeni = 0x345;
constexpr std::string_view kYpogegrammeniUtf8 = "\u0345";

CharacterClass classify(char32_t c) {
  if (c < 0x80) {
    if (c >= 'a' && c <= 'z') return CharacterClass::letter;
    if (c >= '0' && c <= '9') return CharacterClass::number;
    if (c == ' ') return CharacterClass::separator;
    return c >= 'A' && c <= 'Z' ? CharacterClass::letter : CharacterClass::other;
  }
  if (c == kYpogegrammeni) return CharacterClass::separator;
  if (is_letter(c)) return CharacterClass::letter;
  return is_number(c) ? CharacterClass::number : CharacterClass::other;
}

size_t separator_length(std::string_view text) {
  if (text.starts_with(' ')) return 1;
  return text.starts_with(kYpogegrammeniUtf8) ? kYpogegrammeniUtf8.size() : 0;
}

/// The length of `pattern` (lower-case ASCII) at the start of `text` when case is ignored; 0 if it is not there.
size_t match_length(std::string_view text, std::string_view pattern) {
  size_t length = 0;
  for (const char c : pattern) {
    const auto rest = text.substr(length);
    if (rest.starts_with(c)) {
      ++length;
    } else if (c == 's' && rest.starts_with(kLongS)) {
      length += kLongS.size();
    } else {
      return 0;
    }
  }
  return length;
}

}  // namespace

MarkerNames marker_names(SpecialMarkers markers) {
  if (markers == SpecialMarkers::openai) return {"<|startoftext|>", "<|endoftext|>"};
  return {"<start_of_text>", "<end_of_text>"};
}

bool WordSplitter::next(Piece& piece) {
  while (const size_t length = separator_length(text_)) text_.remove_prefix(length);
  if (text_.empty()) return false;
  piece.kind = PieceKind::word;
  size_t length = marker_length(piece);
  if (length == 0) length = contraction_length();
  if (length == 0) length = run_length();
  piece.text = text_.substr(0, length);
  text_.remove_prefix(length);
  return true;
}

/// A marker spelled with U+017F is one piece for the pattern, but its text isn't the marker's: it stays a word.
size_t WordSplitter::marker_length(Piece& piece) const {
  if (markers_ == SpecialMarkers::none || text_[0] != '<') return 0;
  const auto names = marker_names(markers_);
  for (const bool start : {true, false}) {
    const auto name = start ? names.start : names.end;
    const size_t length = match_length(text_, name);
    if (length == 0) continue;
    if (length == name.size()) piece.kind = start ? PieceKind::start_marker : PieceKind::end_marker;
    return length;
  }
  return 0;
}

size_t WordSplitter::contraction_length() const {
  if (text_[0] != '\'') return 0;
  for (const std::string_view ending : {"s", "t", "re", "ve", "m", "ll", "d"}) {
    const size_t length = match_length(text_.substr(1), ending);
    if (length > 0) return 1 + length;
  }
  return 0;
}

size_t WordSplitter::run_length() const {
  size_t end = 0;
  const auto kind = classify(next_character(text_, end));
  if (kind == CharacterClass::number) return end;
  while (end < text_.size()) {
    size_t after = end;
    if (classify(next_character(text_, after)) != kind) break;
    end = after;
  }
  return end;
}

}  // namespace contrastive::text
