#include "contrastive/text/clip_tokenizer.h"

#include <limits>

#include <fmt/format.h>

#include "contrastive/core/error.h"

#include "text/byte_pairs.h"
#include "text/input.h"
#include "text/split_words.h"
#include "text/unicode.h"
#include "text/word_cache.h"

namespace contrastive::text {

namespace {

constexpr size_t kUnlimited = std::numeric_limits<size_t>::max();

int64_t checked_capacity(const ClipTokenizerOptions& options) {
  if (options.word_cache_capacity < 0) {
    throw ConfigError(
        fmt::format("[ClipTokenizer] word_cache_capacity must be at least 0, but is {}", options.word_cache_capacity));
  }
  return options.word_cache_capacity;
}

/// The splitter takes lower-case text.
Cleaning checked_cleaning(const ClipTokenizerOptions& options) {
  if (options.cleaning != Cleaning::lower && options.cleaning != Cleaning::canonicalize) {
    throw ConfigError("[ClipTokenizer] cleaning must be lower or canonicalize, but keeps upper case");
  }
  return options.cleaning;
}

std::string replace_all(std::string_view text, std::string_view from, char to) {
  std::string out;
  while (true) {
    const size_t found = text.find(from);
    out += text.substr(0, found);
    if (found == text.npos) return out;
    out += to;
    text.remove_prefix(found + from.size());
  }
}

}  // namespace

struct ClipTokenizer::Impl {
  Impl(const std::filesystem::path& merges_file, const ClipTokenizerOptions& options)
      : markers(options.special_markers),
        cleaning(checked_cleaning(options)),
        cache(checked_capacity(options)),
        pairs(merges_file) {
    CONTRASTIVE_INTERNAL_ASSERT(pairs.size() == kStartOfText);
  }

  void append_word(std::string_view word, std::vector<int32_t>& ids) {
    if (const int32_t id = pairs.whole_word(word); id >= 0) {
      ids.push_back(id);
      return;
    }
    if (cache.append_ids(word, ids)) return;
    const auto start = static_cast<std::ptrdiff_t>(ids.size());
    pairs.append_ids(word, ids);
    cache.remember(word, std::vector<int32_t>(ids.begin() + start, ids.end()));
  }

  /// Stops after the word that brings the number of ids to `enough`.
  void append_text(std::string_view text, size_t enough, std::vector<int32_t>& ids) {
    const auto cleaned = clean_text(text, cleaning);
    WordSplitter splitter(cleaned, markers);
    for (Piece piece; ids.size() < enough && splitter.next(piece);) {
      if (piece.kind == PieceKind::word) {
        append_word(piece.text, ids);
      } else {
        ids.push_back(piece.kind == PieceKind::start_marker ? kStartOfText : kEndOfText);
      }
    }
  }

  std::string_view bytes(int32_t id) const {
    if (id < 0 || id >= kVocabSize) {
      throw DataError(fmt::format("[ClipTokenizer] id must be in [0, {}), but is {}", kVocabSize, id));
    }
    if (id == kStartOfText) return marker_names(markers).start;
    if (id == kEndOfText) return marker_names(markers).end;
    return pairs.bytes(id);
  }

  SpecialMarkers markers;
  Cleaning cleaning;
  WordCache cache;
  BytePairs pairs;
};

ClipTokenizer::ClipTokenizer(const std::filesystem::path& merges_file, const ClipTokenizerOptions& options)
    : impl_(std::make_unique<Impl>(merges_file, options)) {}
ClipTokenizer::~ClipTokenizer() = default;
ClipTokenizer::ClipTokenizer(ClipTokenizer&&) noexcept = default;
ClipTokenizer& ClipTokenizer::operator=(ClipTokenizer&&) noexcept = default;

std::vector<int32_t> ClipTokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  impl_->append_text(text, kUnlimited, ids);
  return ids;
}

int64_t ClipTokenizer::tokenize(std::string_view text, std::span<int32_t> row, bool truncate) const {
  if (row.size() < 2) {
    throw ConfigError(fmt::format("[tokenize] context length must be at least 2, but is {}", row.size()));
  }
  std::vector<int32_t> ids;
  ids.reserve(row.size() + 8);
  ids.push_back(kStartOfText);
  impl_->append_text(text, truncate ? row.size() : kUnlimited, ids);
  ids.push_back(kEndOfText);
  const size_t length = fill_row(ids, 0, text, truncate, row);
  row[length - 1] = kEndOfText;
  return static_cast<int64_t>(length);
}

std::string ClipTokenizer::decode(std::span<const int32_t> ids) const {
  std::string bytes;
  for (const int32_t id : ids) bytes += impl_->bytes(id);
  return replace_all(encode_utf8(decode_utf8(bytes)), "</w>", ' ');
}

}  // namespace contrastive::text
