#include "contrastive/text/wordpiece_tokenizer.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <unordered_map>
#include <utility>

#include <fmt/format.h>

#include "contrastive/core/error.h"

#include "text/input.h"
#include "text/unicode.h"
#include "text/word_cache.h"

namespace contrastive::text {

namespace {

constexpr int64_t kMaxVocabBytes = 32 << 20;
constexpr size_t kMaxWordCharacters = 100;
constexpr std::string_view kContinuation = "##";

struct Hash : std::hash<std::string_view> {
  using is_transparent = void;
};
using Ids = std::unordered_map<std::string, int32_t, Hash, std::equal_to<>>;

bool is_chinese(char32_t c) {
  return (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0xF900 && c <= 0xFAFF) ||
         (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2CEAF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

/// BERT takes every ASCII symbol for punctuation.
bool is_mark(char32_t c) {
  if (c >= 0x80) return is_punctuation(c);
  return c > ' ' && c < 0x7F && !(c >= '0' && c <= '9') && !((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
}

/// Drops controls, makes white space a plain space, sets Chinese characters apart, composes.
std::u32string normalize(std::u32string_view text, bool lower_case) {
  std::u32string out;
  out.reserve(text.size());
  for (const char32_t c : text) {
    if (c == '\t' || c == '\n' || c == '\r' || is_space_separator(c)) {
      out += U' ';
    } else if (c == 0 || c == kReplacementCharacter || is_control_or_unassigned(c)) {
      continue;
    } else if (is_chinese(c)) {
      out.append({U' ', c, U' '});
    } else if (lower_case) {
      out += to_lower({&c, 1});  // one by one: the reference knows no final sigma
    } else {
      out += c;
    }
  }
  return to_nfc(out);
}

constexpr std::string_view kAsciiSpaces = " \t\n\r";
constexpr int64_t kCachedWords = 1 << 16;

/// Printable ASCII and spaces: nothing in it is dropped, split or composed before words are looked at.
bool is_plain_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= ' ' && c <= '~') || kAsciiSpaces.find(c) != std::string_view::npos; });
}

/// Takes the next word off the front: up to white space.
std::u32string_view take_word(std::u32string_view& text) {
  const auto first = std::find_if_not(text.begin(), text.end(), is_space);
  const auto last = std::find_if(first, text.end(), is_space);
  const std::u32string_view word(first, last);
  text = std::u32string_view(last, text.end());
  return word;
}

/// Takes one punctuation mark, or all up to the next one, off the front.
std::u32string_view take_part(std::u32string_view& word) {
  const auto end = is_mark(word[0]) ? word.begin() + 1 : std::find_if(word.begin(), word.end(), is_mark);
  const std::u32string_view part(word.begin(), end);
  word.remove_prefix(part.size());
  return part;
}

}  // namespace

WordPieceOptions clipa_tokenizer_options() {
  WordPieceOptions options;
  options.cleaning = Cleaning::whitespace;
  options.separator = Separator::blanked;
  return options;
}

WordPieceOptions lit_wordpiece_options() {
  WordPieceOptions options;
  options.separator = Separator::omitted;
  return options;
}

struct WordPieceTokenizer::Impl {
  Impl(const std::filesystem::path& vocab_file, const WordPieceOptions& options_in)
      : name(vocab_file.string()), options(options_in) {
    read_pieces(read_data_file(vocab_file, kMaxVocabBytes));
    pad = required_id("[PAD]");
    unk = required_id("[UNK]");
    cls = required_id("[CLS]");
    sep = required_id("[SEP]");
    for (const std::string_view special : {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}) {
      if (const auto found = ids.find(special); found != ids.end()) specials.emplace_back(special, found->second);
    }
  }

  void read_pieces(std::string_view content) {
    while (!content.empty()) {
      auto line = content.substr(0, content.find('\n'));
      content.remove_prefix(std::min(line.size() + 1, content.size()));
      if (line.ends_with('\r')) line.remove_suffix(1);
      const auto id = static_cast<int32_t>(pieces.size());
      if (!ids.emplace(line, id).second) {
        throw DataError(fmt::format("[vocabulary {}] line {} repeats the piece \"{}\" of line {}", name, id + 1,
                                    excerpt(line), ids.find(line)->second + 1));
      }
      pieces.emplace_back(line);
    }
  }

  int32_t required_id(std::string_view special) const {
    if (const auto found = ids.find(special); found != ids.end()) return found->second;
    throw DataError(fmt::format("[vocabulary {}] it must have the piece {}, but has not ({} pieces)", name, special,
                                pieces.size()));
  }

  /// Words until there are `enough` ids. Special pieces that the text spells out come first: they cut words apart.
  void append_text(std::string_view text, size_t enough, std::vector<int32_t>& out) const {
    const auto cleaned = clean_text(text, options.cleaning);
    std::string_view rest = cleaned;
    while (!rest.empty() && out.size() < enough) {
      const auto [position, special] = find_special(rest);
      append_plain(rest.substr(0, position), enough, out);
      if (special == nullptr) return;
      out.push_back(special->second);
      rest.remove_prefix(position + special->first.size());
    }
  }

  using Special = std::pair<std::string_view, int32_t>;

  /// The first special piece in the text and where it starts.
  std::pair<size_t, const Special*> find_special(std::string_view text) const {
    for (size_t start = text.find('['); start != text.npos; start = text.find('[', start + 1)) {
      for (const auto& special : specials) {
        if (text.substr(start).starts_with(special.first)) return {start, &special};
      }
    }
    return {text.size(), nullptr};
  }

  void append_plain(std::string_view text, size_t enough, std::vector<int32_t>& out) const {
    if (is_plain_ascii(text)) return append_ascii(text, enough, out);
    const auto normalized = normalize(decode_utf8(text), options.lower_case);
    std::u32string_view rest = normalized;
    while (out.size() < enough) {
      const auto word = take_word(rest);
      if (word.empty()) return;
      append_word(word, out);
    }
  }

  /// The same for text whose words are what stands between its spaces: they are remembered.
  void append_ascii(std::string_view text, size_t enough, std::vector<int32_t>& out) const {
    while (out.size() < enough) {
      text.remove_prefix(std::min(text.find_first_not_of(kAsciiSpaces), text.size()));
      if (text.empty()) return;
      const auto word = text.substr(0, text.find_first_of(kAsciiSpaces));
      text.remove_prefix(word.size());
      if (cache.append_ids(word, out)) continue;
      const size_t before = out.size();
      append_word(normalize(decode_utf8(word), options.lower_case), out);
      cache.remember(word, {out.begin() + static_cast<int64_t>(before), out.end()});
    }
  }

  void append_word(std::u32string_view word, std::vector<int32_t>& out) const {
    const auto spelled = encode_utf8(word);  // a special piece that appeared when controls were dropped
    const auto is_it = [&](const Special& special) { return special.first == spelled; };
    if (const auto found = std::find_if(specials.begin(), specials.end(), is_it); found != specials.end()) {
      return out.push_back(found->second);
    }
    const auto plain = options.lower_case ? without_accents(word) : std::u32string(word);
    for (std::u32string_view rest = plain; !rest.empty();) {
      for (auto part = take_part(rest); !part.empty();) {
        const auto piece = take_word(part);  // taking accents off can leave a space
        if (!piece.empty()) append_part(piece, out);
      }
    }
  }

  /// The longest pieces, from the left; one unknown id if some end of the word can't be spelled.
  void append_part(std::u32string_view part, std::vector<int32_t>& out) const {
    if (part.size() > kMaxWordCharacters) return out.push_back(unk);
    const auto bytes = encode_utf8(part);
    const size_t before = out.size();
    for (size_t start = 0; start < bytes.size();) {
      const auto [id, length] = longest_piece(std::string_view(bytes).substr(start), start > 0);
      if (length == 0) {
        out.resize(before);
        return out.push_back(unk);
      }
      out.push_back(id);
      start += length;
    }
  }

  /// The id of the longest piece that `bytes` starts with, and its length.
  std::pair<int32_t, size_t> longest_piece(std::string_view bytes, bool inside_word) const {
    std::string candidate(inside_word ? kContinuation : std::string_view());
    const size_t prefix = candidate.size();
    candidate += bytes;
    while (candidate.size() > prefix) {
      if (const auto found = ids.find(candidate); found != ids.end()) return {found->second, candidate.size() - prefix};
      while ((candidate.back() & 0xC0) == 0x80) candidate.pop_back();  // a whole character at a time
      candidate.pop_back();
    }
    return {unk, 0};
  }

  std::string name;
  WordPieceOptions options;
  mutable WordCache cache{kCachedWords};
  Ids ids;
  std::vector<std::string> pieces;
  std::vector<Special> specials;
  int32_t pad = 0;
  int32_t unk = 0;
  int32_t cls = 0;
  int32_t sep = 0;
};

WordPieceTokenizer::WordPieceTokenizer(const std::filesystem::path& vocab_file, const WordPieceOptions& options)
    : impl_(std::make_unique<Impl>(vocab_file, options)) {}
WordPieceTokenizer::~WordPieceTokenizer() = default;
WordPieceTokenizer::WordPieceTokenizer(WordPieceTokenizer&&) noexcept = default;
WordPieceTokenizer& WordPieceTokenizer::operator=(WordPieceTokenizer&&) noexcept = default;

std::vector<int32_t> WordPieceTokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  impl_->append_text(text, std::numeric_limits<size_t>::max(), ids);
  return ids;
}

int64_t WordPieceTokenizer::tokenize(std::string_view text, std::span<int32_t> row, bool truncate) const {
  const auto& options = impl_->options;
  const bool has_separator = options.separator != Separator::omitted;
  const size_t least = std::max(static_cast<size_t>(options.add_cls) + static_cast<size_t>(has_separator), size_t{1});
  if (row.size() < least) {
    throw ConfigError(fmt::format("[tokenize] context length must be at least {}, but is {}", least, row.size()));
  }
  std::vector<int32_t> ids;
  if (options.add_cls) ids.push_back(impl_->cls);
  impl_->append_text(text, truncate ? row.size() : std::numeric_limits<size_t>::max(), ids);
  if (has_separator) ids.push_back(impl_->sep);
  size_t length = fill_row(ids, impl_->pad, text, truncate, row);
  if (ids.size() > length && has_separator) row[length - 1] = impl_->sep;
  if (options.separator == Separator::blanked) {
    std::replace(row.begin(), row.end(), impl_->sep, impl_->pad);
    --length;
  }
  return static_cast<int64_t>(length);
}

std::string WordPieceTokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab_size()) {
      throw DataError(fmt::format("[vocabulary {}] id must be in [0, {}), but is {}", impl_->name, vocab_size(), id));
    }
    std::string_view piece = impl_->pieces[static_cast<size_t>(id)];
    const bool inside_word = piece.starts_with(kContinuation) && !text.empty();
    if (inside_word) {
      piece.remove_prefix(kContinuation.size());
    } else if (!text.empty()) {
      text += ' ';
    }
    text += piece;
  }
  return text;
}

int64_t WordPieceTokenizer::vocab_size() const {
  return static_cast<int64_t>(impl_->pieces.size());
}

}  // namespace contrastive::text
