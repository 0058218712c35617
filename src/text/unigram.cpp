#include "text/unigram.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

namespace contrastive::text {

namespace {

/// How much worse an unknown character is than the worst piece.
constexpr float kUnknownPenalty = 10.0F;

constexpr float kLargestSum = 100'000.0F;

size_t character_length(std::string_view text, size_t position) {
  const auto lead = static_cast<uint8_t>(text[position]);
  const size_t length = lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  return std::min(length, text.size() - position);
}

float score_of(const UnigramPiece& piece, size_t length) {
  return piece.user_defined ? static_cast<float>(0.1 * static_cast<double>(length - 1)) : piece.score;
}

}  // namespace

UnigramSplitter::UnigramSplitter(std::vector<UnigramPiece> pieces, int32_t unknown_id)
    : pieces_(std::move(pieces)), unknown_id_(unknown_id) {
  float lowest = std::numeric_limits<float>::max();
  size_t bytes = 0;
  for (const auto& piece : pieces_) {
    if (!piece.user_defined) lowest = std::min(lowest, piece.score);
    bytes += piece.text.size();
    longest_ = std::max(longest_, piece.text.size());
  }
  unknown_score_ = lowest - kUnknownPenalty;
  edges_.resize(std::bit_ceil(2 * bytes + 2));
  piece_of_node_.push_back(-1);
  for (size_t i = 0; i < pieces_.size(); ++i) add_to_tree(pieces_[i].text, static_cast<uint32_t>(i));
}

void UnigramSplitter::add_to_tree(std::string_view text, uint32_t piece) {
  uint32_t node = 0;
  for (const char byte : text) {
    auto& edge = edges_[slot_of(node, static_cast<uint8_t>(byte))];
    if (edge.child == 0) {
      edge = {node, static_cast<uint32_t>(piece_of_node_.size()), static_cast<uint8_t>(byte)};
      piece_of_node_.push_back(-1);
    }
    node = edge.child;
  }
  piece_of_node_[node] = static_cast<int32_t>(piece);
}

/// The edge's slot, or the free one where it belongs.
size_t UnigramSplitter::slot_of(uint32_t node, uint8_t byte) const {
  const size_t mask = edges_.size() - 1;
  const uint64_t key = uint64_t{node} << 8 | byte;
  size_t slot = (key * 0x9E3779B97F4A7C15U >> 20) & mask;
  while (edges_[slot].child != 0 && (edges_[slot].node != node || edges_[slot].byte != byte)) slot = (slot + 1) & mask;
  return slot;
}

uint32_t UnigramSplitter::child_of(uint32_t node, char byte) const {
  return edges_[slot_of(node, static_cast<uint8_t>(byte))].child;
}

void UnigramSplitter::offer(Best& target, float score, int32_t id, size_t start) {
  if (target.start < 0 || score > target.score) target = {score, id, static_cast<int64_t>(start)};
}

/// Takes the sum at `start` off all sums from there on, if it is large: a long text keeps its precision.
void UnigramSplitter::shift_sums(size_t start, std::vector<Best>& best) const {
  const float sum = best[start].score;
  if (sum >= -kLargestSum && sum <= kLargestSum) return;
  const size_t end = std::min(best.size(), start + longest_ + 1);  // no part reaches further
  for (size_t i = start; i < end; ++i) {
    if (i == start || best[i].start >= 0) best[i].score -= sum;
  }
}

/// Offers every piece that starts at `start` to the place where it ends.
void UnigramSplitter::extend(std::string_view text, size_t start, std::vector<Best>& best) const {
  const float before = best[start].score;
  const size_t first_character = character_length(text, start);
  bool has_first_character = false;
  uint32_t node = 0;
  for (size_t end = start; end < text.size();) {
    node = child_of(node, text[end++]);
    if (node == 0) break;
    if (piece_of_node_[node] < 0) continue;
    const auto& piece = pieces_[static_cast<size_t>(piece_of_node_[node])];
    offer(best[end], score_of(piece, end - start) + before, piece.id, start);
    has_first_character = has_first_character || end - start == first_character;
  }
  if (!has_first_character) offer(best[start + first_character], unknown_score_ + before, unknown_id_, start);
}

std::vector<UnigramSplitter::Part> UnigramSplitter::split(std::string_view normalized) const {
  std::vector<Best> best(normalized.size() + 1);
  for (size_t start = 0; start < normalized.size(); start += character_length(normalized, start)) {
    shift_sums(start, best);
    extend(normalized, start, best);
  }
  std::vector<Part> parts;
  for (size_t end = normalized.size(); end > 0;) {
    const auto start = static_cast<size_t>(best[end].start);
    parts.push_back({normalized.substr(start, end - start), best[end].id});
    end = start;
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

}  // namespace contrastive::text
