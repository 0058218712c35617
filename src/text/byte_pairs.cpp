#include "text/byte_pairs.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>
#include <queue>
#include <span>
#include <unordered_map>

#include <fmt/format.h>
#include <zlib.h>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"

#include "text/unicode.h"

namespace contrastive::text {

namespace {

constexpr std::string_view kEndOfWord = "</w>";
constexpr std::string_view kSha256 = "67603cfda2e032ad77b5f8808af37789d590db664b26df8705d2bf8b3c553fc8";
constexpr size_t kFileBytes = 3'194'984;
constexpr int kUsedMerges = 49152 - 256 - 2;  // the file lists five times as many

/// Both hash tables have 2^17 slots: under 40 % full, so probes are short.
constexpr int kTableBits = 17;
constexpr size_t kTableSize = size_t{1} << kTableBits;
constexpr uint32_t kNoPair = std::numeric_limits<uint32_t>::max();

uint32_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint32_t>(left) << 16 | static_cast<uint32_t>(right);
}

size_t slot_of(uint32_t pair) {
  return pair * 0x9E3779B1U >> (32 - kTableBits);
}
size_t slot_of(std::string_view word) {
  return std::hash<std::string_view>{}(word) & (kTableSize - 1);
}

/// Reads a plain or gzip file, at most one byte more than CLIP's has.
std::string read_merges_file(const std::string& file) {
  const std::unique_ptr<gzFile_s, decltype(&gzclose)> stream(gzopen(file.c_str(), "rb"), &gzclose);
  if (!stream) throw DataError(fmt::format("[merges file {}] can't be opened", file));
  std::string text(kFileBytes + 1, '\0');
  const int count = gzread(stream.get(), text.data(), static_cast<unsigned>(text.size()));
  if (count < 0) {
    int code = 0;
    throw DataError(fmt::format("[merges file {}] can't be read: {}", file, gzerror(stream.get(), &code)));
  }
  text.resize(static_cast<size_t>(count));
  return text;
}

void check_digest(const std::string& text, const std::string& file) {
  if (text.size() > kFileBytes) {
    throw DataError(fmt::format(
        "[merges file {}] must have {} bytes of text, but has more: it is not CLIP's merges file", file, kFileBytes));
  }
  const auto digest = sha256_hex(std::span(reinterpret_cast<const uint8_t*>(text.data()), text.size()));
  if (digest != kSha256) {
    throw DataError(
        fmt::format("[merges file {}] sha256 of its text must be {}, but is {} ({} bytes): it is not CLIP's "
                    "merges file",
                    file, kSha256, digest, text.size()));
  }
}

/// The bytes that stand for themselves in the merges file.
bool is_printable(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
}

/// All bytes in the order of their ids: the printable ones first.
std::vector<uint8_t> bytes_in_id_order() {
  std::vector<uint8_t> order;
  for (const bool printable : {true, false}) {
    for (int byte = 0; byte < 256; ++byte) {
      if (is_printable(byte) == printable) order.push_back(static_cast<uint8_t>(byte));
    }
  }
  return order;
}

/// How the merges file writes bytes, in the order of their ids: printable ones as U+00xx, the others as U+0100 upwards.
std::u32string byte_characters() {
  std::u32string characters;
  char32_t next = 0x100;
  for (const uint8_t byte : bytes_in_id_order()) characters += is_printable(byte) ? char32_t{byte} : next++;
  return characters;
}

std::unordered_map<char32_t, uint8_t> bytes_by_character() {
  const auto order = bytes_in_id_order();
  const auto characters = byte_characters();
  std::unordered_map<char32_t, uint8_t> bytes;
  for (size_t i = 0; i < order.size(); ++i) bytes[characters[i]] = order[i];
  return bytes;
}

/// Takes the text up to `separator` off the front.
std::string_view take_until(std::string_view& text, char separator) {
  const auto part = text.substr(0, text.find(separator));
  text.remove_prefix(std::min(part.size() + 1, text.size()));
  return part;
}

/// A possible merge of the symbol that starts at byte `left` with its right neighbour.
struct Candidate {
  int32_t merged;
  int32_t left;

  bool operator>(const Candidate& other) const {
    return merged != other.merged ? merged > other.merged : left > other.left;
  }
};

/// The symbols of a word as a linked list over its bytes; ids of absorbed symbols become -1.
struct Symbols {
  std::vector<int32_t> ids;
  std::vector<int32_t> next;
  std::vector<int32_t> previous;

  explicit Symbols(size_t size) : ids(size), next(size), previous(size) {
    for (size_t i = 0; i < size; ++i) {
      previous[i] = static_cast<int32_t>(i) - 1;
      next[i] = i + 1 < size ? static_cast<int32_t>(i) + 1 : -1;
    }
  }

  int32_t id(int32_t position) const { return ids[static_cast<size_t>(position)]; }
  int32_t after(int32_t position) const { return next[static_cast<size_t>(position)]; }
  int32_t before(int32_t position) const { return previous[static_cast<size_t>(position)]; }

  void merge_with_next(int32_t position, int32_t merged) {
    const int32_t right = after(position);
    ids[static_cast<size_t>(position)] = merged;
    ids[static_cast<size_t>(right)] = -1;
    next[static_cast<size_t>(position)] = after(right);
    if (after(right) >= 0) previous[static_cast<size_t>(after(right))] = position;
  }
};

}  // namespace

std::vector<std::string> read_merge_lines(const std::filesystem::path& merges_file) {
  const auto text = read_merges_file(merges_file.string());
  check_digest(text, merges_file.string());
  std::string_view rest = text;
  take_until(rest, '\n');  // the version
  std::vector<std::string> lines;
  for (int i = 0; i < kUsedMerges; ++i) lines.emplace_back(take_until(rest, '\n'));
  return lines;
}

std::vector<std::string> byte_spellings() {
  std::vector<std::string> spellings;
  for (const char32_t character : byte_characters()) append_utf8(spellings.emplace_back(), character);
  return spellings;
}

BytePairs::BytePairs(const std::filesystem::path& merges_file)
    : byte_ids_(256), merges_(kTableSize, {kNoPair, -1}), whole_words_(kTableSize, -1) {
  add_byte_symbols();
  add_merges(read_merge_lines(merges_file), merges_file.string());
  index_whole_words();
}

void BytePairs::add_byte_symbols() {
  for (const auto ending : {std::string_view(), kEndOfWord}) {
    for (const uint8_t byte : bytes_in_id_order()) {
      if (ending.empty()) byte_ids_[byte] = size();
      bytes_.push_back(std::string(1, static_cast<char>(byte)).append(ending));
    }
  }
}

void BytePairs::add_merges(const std::vector<std::string>& lines, const std::string& file) {
  const auto byte_of = bytes_by_character();
  const auto to_bytes = [&](std::string_view symbol) {
    std::string bytes;
    for (const char32_t character : decode_utf8(symbol)) bytes += static_cast<char>(byte_of.at(character));
    return bytes;
  };
  std::unordered_map<std::string, int32_t> ids;
  for (int32_t id = 0; id < size(); ++id) ids.emplace(bytes_[static_cast<size_t>(id)], id);

  for (size_t i = 0; i < lines.size(); ++i) {
    std::string_view line = lines[i];
    const auto left = ids.find(to_bytes(take_until(line, ' ')));
    const auto right = ids.find(to_bytes(line));
    if (left == ids.end() || right == ids.end()) {
      throw DataError(
          fmt::format("[merges file {}] line {} merges a symbol that no line before it makes", file, i + 2));
    }
    insert_merge(left->second, right->second, size());
    bytes_.push_back(left->first + right->first);
    ids.emplace(bytes_.back(), size() - 1);
  }
}

void BytePairs::insert_merge(int32_t left, int32_t right, int32_t merged) {
  const uint32_t pair = pair_key(left, right);
  size_t slot = slot_of(pair);
  while (merges_[slot].pair != kNoPair) slot = (slot + 1) & (kTableSize - 1);
  merges_[slot] = {pair, merged};
}

int32_t BytePairs::merged(int32_t left, int32_t right) const {
  const uint32_t pair = pair_key(left, right);
  size_t slot = slot_of(pair);
  while (merges_[slot].pair != pair && merges_[slot].pair != kNoPair) slot = (slot + 1) & (kTableSize - 1);
  return merges_[slot].pair == pair ? merges_[slot].merged : -1;
}

/// Not every whole word of the vocabulary is reached by merging its bytes, so each is tried.
void BytePairs::index_whole_words() {
  std::vector<int32_t> ids;
  for (int32_t id = 256; id < size(); ++id) {
    auto word = bytes(id);
    if (!word.ends_with(kEndOfWord)) continue;
    word.remove_suffix(kEndOfWord.size());
    ids.clear();
    append_ids(word, ids);
    if (ids.size() != 1 || ids[0] != id) continue;
    size_t slot = slot_of(word);
    while (whole_words_[slot] >= 0) slot = (slot + 1) & (kTableSize - 1);
    whole_words_[slot] = id;
  }
}

int32_t BytePairs::whole_word(std::string_view word) const {
  for (size_t slot = slot_of(word); whole_words_[slot] >= 0; slot = (slot + 1) & (kTableSize - 1)) {
    auto candidate = bytes(whole_words_[slot]);
    candidate.remove_suffix(kEndOfWord.size());
    if (candidate == word) return whole_words_[slot];
  }
  return -1;
}

void BytePairs::append_ids(std::string_view word, std::vector<int32_t>& ids) const {
  Symbols symbols(word.size());
  for (size_t i = 0; i < word.size(); ++i) symbols.ids[i] = byte_ids_[static_cast<uint8_t>(word[i])];
  symbols.ids.back() += 256;

  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto propose = [&](int32_t left) {
    if (left < 0 || symbols.after(left) < 0) return;
    const int32_t id = merged(symbols.id(left), symbols.id(symbols.after(left)));
    if (id >= 0) candidates.push({id, left});
  };
  for (int32_t i = 0; i < static_cast<int32_t>(word.size()); ++i) propose(i);

  // A merge's own id is larger than those of its parts, so what it makes possible always comes later in the queue:
  // the order is that of merging all occurrences of the best pair, from the left, again and again.
  while (!candidates.empty()) {
    const auto [id, left] = candidates.top();
    candidates.pop();
    const bool outdated = symbols.id(left) < 0 || symbols.after(left) < 0 ||
                          merged(symbols.id(left), symbols.id(symbols.after(left))) != id;
    if (outdated) continue;
    symbols.merge_with_next(left, id);
    propose(symbols.before(left));
    propose(left);
  }
  for (int32_t i = 0; i >= 0; i = symbols.after(i)) ids.push_back(symbols.id(i));
}

}  // namespace contrastive::text
