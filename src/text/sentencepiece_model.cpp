#include "text/sentencepiece_model.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <unordered_set>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "contrastive/core/error.h"

// The format is the protocol buffer message ModelProto of sentencepiece_model.proto; the character map is a
// double-array trie of darts-clone followed by the strings that it points to.

namespace contrastive::text {

namespace {

// Far above published models: at most 901,629 pieces of at most some hundred bytes.
constexpr size_t kMaxPieces = 1 << 20;
constexpr size_t kMaxPieceBytes = 4096;

enum Wire : uint32_t { kVarint = 0, kFixed64 = 1, kDelimited = 2, kFixed32 = 5 };

struct Field {
  uint32_t number = 0;
  uint32_t wire = 0;
  uint64_t value = 0;      ///< of a number
  std::string_view bytes;  ///< of a string, a nested message
  std::string_view whole;  ///< the field as it is in the file
};

class FieldReader {
 public:
  FieldReader(std::string_view message, const std::string& name) : rest_(message), name_(name) {}

  /// False at the end of the message.
  bool next(Field& field) {
    if (rest_.empty()) return false;
    const auto start = rest_;
    const uint64_t tag = read_varint();
    field = {};
    field.number = static_cast<uint32_t>(tag >> 3);
    field.wire = static_cast<uint32_t>(tag & 7);
    if (tag >> 32 != 0 || field.number == 0) fail("a field has no valid number");
    switch (field.wire) {
      case kVarint:
        field.value = read_varint();
        break;
      case kFixed64:
        field.value = read_fixed(8);
        break;
      case kFixed32:
        field.value = read_fixed(4);
        break;
      case kDelimited:
        field.bytes = take(read_varint());
        break;
      default:
        fail(fmt::format("field {} has the unknown kind {}", field.number, field.wire));
    }
    field.whole = start.substr(0, start.size() - rest_.size());
    return true;
  }

 private:
  [[noreturn]] void fail(const std::string& problem) const {
    throw DataError(fmt::format("[SentencePiece model {}] {}", name_, problem));
  }

  std::string_view take(uint64_t count) {
    if (count > rest_.size()) {
      fail(fmt::format("it ends inside a field: {} more bytes must follow, but {} do", count, rest_.size()));
    }
    const auto taken = rest_.substr(0, static_cast<size_t>(count));
    rest_.remove_prefix(taken.size());
    return taken;
  }

  uint64_t read_varint() {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<uint8_t>(take(1)[0]);
      value |= uint64_t{byte & 0x7FU} << shift;
      if (byte < 0x80) return value;
    }
    fail("a number has more than ten bytes");
  }

  uint64_t read_fixed(size_t count) {
    uint64_t value = 0;
    const auto bytes = take(count);
    for (size_t i = 0; i < count; ++i) value |= uint64_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
    return value;
  }

  std::string_view rest_;
  const std::string& name_;
};

// ---- Pieces

enum PieceType : uint64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

struct ModelPiece {
  std::string_view text;
  float score = 0;
  uint64_t type = kNormal;
};

ModelPiece read_piece(std::string_view message, const std::string& name) {
  ModelPiece piece;
  FieldReader reader(message, name);
  for (Field field; reader.next(field);) {
    if (field.number == 1 && field.wire == kDelimited) piece.text = field.bytes;
    if (field.number == 2 && field.wire == kFixed32) {
      piece.score = std::bit_cast<float>(static_cast<uint32_t>(field.value));
    }
    if (field.number == 3 && field.wire == kVarint) piece.type = field.value;
  }
  return piece;
}

/// Reads the pieces one after the other and keeps what concerns all of them.
class Pieces {
 public:
  explicit Pieces(const std::string& name) : name_(name) {}

  void add(std::string_view message) {
    const auto piece = read_piece(message, name_);
    const size_t id = count_++;
    if (count_ > kMaxPieces) fail(fmt::format("it must have at most {} pieces, but has more", kMaxPieces));
    if (piece.text.empty() || piece.text.size() > kMaxPieceBytes || piece.text.find('\0') != piece.text.npos) {
      fail(fmt::format("piece {} must have 1 to {} bytes, none of them 0", id, kMaxPieceBytes));
    }
    if (!std::isfinite(piece.score)) fail(fmt::format("the score of piece {} is no finite number", id));
    if (piece.type < kNormal || piece.type > kByte)
      fail(fmt::format("piece {} has the unknown type {}", id, piece.type));
    if (!texts_.insert(piece.text).second) fail(fmt::format("piece {} occurs a second time", id));
    num_unknown_ += piece.type == kUnknown;
    if (piece.type == kNormal || piece.type == kUnknown || piece.type == kByte) num_ordinary_ = count_;
    if (piece.type == kNormal) has_normal_ = true;
    if (piece.type == kUserDefined) user_defined_.push_back(piece.text);
    if (piece.type == kNormal || piece.type == kUserDefined) {
      found_in_text_.push_back(
          {std::string(piece.text), static_cast<int32_t>(id), piece.score, piece.type == kUserDefined});
    }
  }

  void check_all() {
    if (num_unknown_ != 1) fail(fmt::format("it must have one piece for unknown text, but has {}", num_unknown_));
    if (!has_normal_) fail("it has no ordinary piece");
    check_nesting();
  }

  size_t count() const { return count_; }
  size_t num_ordinary() const { return num_ordinary_; }
  std::vector<UnigramPiece> take_found_in_text() { return std::move(found_in_text_); }

 private:
  [[noreturn]] void fail(const std::string& problem) const {
    throw DataError(fmt::format("[SentencePiece model {}] {}", name_, problem));
  }

  /// The library has room for 64 user-defined pieces that are beginnings of one another.
  void check_nesting() {
    constexpr size_t kMaxNested = 64;
    std::sort(user_defined_.begin(), user_defined_.end());
    std::vector<std::string_view> nested;
    for (const auto piece : user_defined_) {
      while (!nested.empty() && !piece.starts_with(nested.back())) nested.pop_back();
      nested.push_back(piece);
      if (nested.size() > kMaxNested) {
        fail(fmt::format("more than {} user-defined pieces are beginnings of one another", kMaxNested));
      }
    }
  }

  const std::string& name_;
  size_t count_ = 0;
  size_t num_ordinary_ = 0;
  int num_unknown_ = 0;
  bool has_normal_ = false;
  std::unordered_set<std::string_view> texts_;
  std::vector<std::string_view> user_defined_;
  std::vector<UnigramPiece> found_in_text_;
};

// ---- Normalizer

/// A node of the search tree, four bytes.
class TrieUnit {
 public:
  explicit TrieUnit(uint32_t bits) : bits_(bits) {}

  bool is_leaf() const { return bits_ >> 31 != 0; }
  size_t value() const { return bits_ & 0x7FFFFFFF; }
  size_t label() const { return bits_ & 0xFF; }
  bool has_leaf() const { return (bits_ >> 8 & 1) != 0; }
  size_t offset() const { return size_t{bits_ >> 10} << ((bits_ & (1U << 9)) >> 6); }

 private:
  uint32_t bits_;
};

uint32_t read_u32(std::string_view bytes, size_t position) {
  std::array<uint8_t, 4> parts;
  std::memcpy(parts.data(), bytes.data() + position, parts.size());
  return uint32_t{parts[0]} | uint32_t{parts[1]} << 8 | uint32_t{parts[2]} << 16 | uint32_t{parts[3]} << 24;
}

/// Whether any text may be looked up in a tree without leaving it, without more hits than the library has room for, and
/// with hits below `num_values` only. Branches may share their ends, but not form a circle.
class TrieCheck {
 public:
  TrieCheck(std::string_view trie, size_t num_values)
      : trie_(trie), num_values_(num_values), hits_(trie.size() / 4, kUnvisited) {}

  bool is_safe() { return hits_below(0, 0) >= 0; }

 private:
  static constexpr int kUnvisited = -2;
  static constexpr int kUnsafe = -1;
  static constexpr int kMaxDepth = 256;  // bytes of the longest mapped sequence; published models have under 20
  static constexpr int kMaxHits = 32;

  TrieUnit unit_at(size_t index) const { return TrieUnit(read_u32(trie_, 4 * index)); }

  /// The most hits that a text can have from this node on; kUnsafe if something is wrong.
  int hits_below(size_t node, int depth) {
    if (depth > kMaxDepth) return kUnsafe;
    if (hits_[node] == kUnvisited) hits_[node] = count_hits(node, depth);
    return hits_[node];
  }

  int count_hits(size_t node, int depth) {
    const auto unit = unit_at(node);
    const size_t children = node ^ unit.offset();
    if ((children | 0xFF) >= hits_.size()) return kUnsafe;  // the next byte of the text picks one of 256
    const auto leaf = unit_at(children);
    if (unit.has_leaf() && (!leaf.is_leaf() || leaf.value() >= num_values_)) return kUnsafe;
    int most = 0;
    for (size_t label = 0; label < 256; ++label) {
      const auto child = unit_at(children ^ label);
      if (child.is_leaf() || child.label() != label) continue;
      const int hits = hits_below(children ^ label, depth + 1);
      if (hits == kUnsafe) return kUnsafe;
      most = std::max(most, hits);
    }
    most += unit.has_leaf() ? 1 : 0;
    return most <= kMaxHits ? most : kUnsafe;
  }

  std::string_view trie_;
  size_t num_values_;
  std::vector<int> hits_;
};

/// Layout: size of the tree (4 bytes), the tree, strings that end in 0.
bool is_safe_character_map(std::string_view map) {
  if (map.empty()) return true;
  if (map.size() < 4) return false;
  const size_t trie_bytes = read_u32(map, 0);
  if (trie_bytes == 0 || trie_bytes % 4 != 0 || trie_bytes >= map.size() - 4 || map.back() != '\0') return false;
  return TrieCheck(map.substr(4, trie_bytes), map.size() - 4 - trie_bytes).is_safe();
}

void check_normalizer(std::string_view message, const std::string& name) {
  FieldReader reader(message, name);
  for (Field field; reader.next(field);) {
    if (field.number == 2 && field.wire == kDelimited && !is_safe_character_map(field.bytes)) {
      throw DataError(fmt::format("[SentencePiece model {}] its character map is damaged", name));
    }
  }
}

/// Whether the model is a unigram model and not one of byte pairs.
bool read_is_unigram(std::string_view trainer, const std::string& name) {
  constexpr uint64_t kUnigram = 1;
  constexpr uint64_t kBytePairs = 2;
  uint64_t type = kUnigram;
  FieldReader reader(trainer, name);
  for (Field field; reader.next(field);) {
    if (field.number == 3 && field.wire == kVarint) type = field.value;
    if (type != kUnigram && type != kBytePairs) {
      throw DataError(fmt::format("[SentencePiece model {}] its type must be unigram (1) or byte pairs (2), but is {}",
                                  name, type));
    }
  }
  return type == kUnigram;
}

}  // namespace

CheckedModel check_sentencepiece_model(std::string_view bytes, const std::string& name) {
  constexpr uint32_t kPieces = 1;
  constexpr uint32_t kTrainer = 2;
  constexpr uint32_t kNormalizer = 3;
  constexpr uint32_t kDenormalizer = 5;
  CheckedModel model;
  Pieces pieces(name);
  std::array<int, 6> seen{};
  FieldReader reader(bytes, name);
  for (Field field; reader.next(field);) {
    if (field.wire != kDelimited || field.number > kDenormalizer || field.number == 4) continue;
    if (++seen[field.number] > 1 && field.number != kPieces) {
      throw DataError(fmt::format("[SentencePiece model {}] part {} occurs twice", name, field.number));
    }
    if (field.number == kPieces) pieces.add(field.bytes);
    if (field.number == kTrainer) model.is_unigram = read_is_unigram(field.bytes, name);
    if (field.number == kNormalizer || field.number == kDenormalizer) check_normalizer(field.bytes, name);
    model.serialized += field.whole;
  }
  pieces.check_all();
  model.num_pieces = pieces.count();
  model.num_ordinary = pieces.num_ordinary();
  if (model.is_unigram) model.unigram_pieces = pieces.take_found_in_text();
  return model;
}

}  // namespace contrastive::text
