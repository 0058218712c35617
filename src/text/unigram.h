#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace contrastive::text {

/// A piece of a unigram model that can be found in a text.
struct UnigramPiece {
  std::string text;
  int32_t id;
  float score;
  bool user_defined;
};

/// Splits normalized text into the pieces with the highest sum of scores. Immutable, so thread-safe.
/// The installed sentencepiece library adds scores in another precision than its current release; where two splits tie,
/// such as in a run of dashes, their ids differ. This follows the current one.
/// Source: Kudo 2018; sentencepiece 0.2.3 (order of candidates, single precision).
class UnigramSplitter {
 public:
  UnigramSplitter(std::vector<UnigramPiece> pieces, int32_t unknown_id);

  /// A part of the text and its id; characters that no piece has are unknown, one by one.
  struct Part {
    std::string_view text;
    int32_t id;
  };

  /// `normalized` is valid UTF-8. O(n k) for n bytes and pieces of at most k.
  std::vector<Part> split(std::string_view normalized) const;

 private:
  /// The best split of the text up to some byte: its last part, and the sum of its scores.
  struct Best {
    float score = 0;
    int32_t id = -1;
    int64_t start = -1;
  };

  /// A slot of the hash table of the search tree's edges.
  struct Edge {
    uint32_t node = 0;
    uint32_t child = 0;  ///< 0: the slot is free
    uint8_t byte = 0;
  };

  void add_to_tree(std::string_view text, uint32_t piece);
  size_t slot_of(uint32_t node, uint8_t byte) const;
  uint32_t child_of(uint32_t node, char byte) const;
  void shift_sums(size_t start, std::vector<Best>& best) const;
  void extend(std::string_view text, size_t start, std::vector<Best>& best) const;
  static void offer(Best& target, float score, int32_t id, size_t start);

  std::vector<UnigramPiece> pieces_;
  int32_t unknown_id_;
  float unknown_score_;
  size_t longest_ = 4;  ///< bytes of the longest part, an unknown character at least
  std::vector<Edge> edges_;
  std::vector<int32_t> piece_of_node_;  ///< index into pieces_, or -1
};

}  // namespace contrastive::text
