#include "contrastive/eval/retrieval.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/vector_clones.h"

namespace contrastive::eval {
namespace {

constexpr int64_t kQueryTile = 256;
constexpr int64_t kCandidateTile = 2048;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// A product that no matrix library, thread or tile has a part in: fp64 in a fixed order, where products of fp32
/// numbers are exact. Not a number: stands last.
CONTRASTIVE_VECTOR_CLONES double exact_product(const float* a, const float* b, int64_t size) {
  constexpr int64_t kLanes = 8;
  std::array<double, kLanes> sums{};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) sums[k] += static_cast<double>(a[i + k]) * static_cast<double>(b[i + k]);
  }
  for (; i < size; ++i) sums[0] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  double sum = 0;
  for (const auto each : sums) sum += each;
  return std::isnan(sum) ? -kInfinity : sum;
}

/// How many scores are surely above `low`..`high`, and how many are neither surely above nor surely below.
struct TileCount {
  int64_t above;
  int64_t unsure;
};

CONTRASTIVE_VECTOR_CLONES TileCount count_tile(const float* scores, int64_t size, float low, float high) {
  int32_t above = 0;
  int32_t below = 0;
  for (int64_t j = 0; j < size; ++j) {
    above += scores[j] > high ? 1 : 0;
    below += scores[j] < low ? 1 : 0;
  }
  return {above, size - above - below};
}

/// A candidate with its exact score.
struct Place {
  double score;
  int64_t index;
  bool is_before(const Place& other) const {
    return score > other.score || (score == other.score && index < other.index);
  }
};

/// Candidates to be ranked, and for every query those that are right: list[begin[q]] .. list[begin[q + 1] - 1].
struct Direction {
  torch::Tensor queries;     ///< [Q, E] fp32
  torch::Tensor candidates;  ///< [K, E] fp32
  std::vector<int64_t> right_begin;
  std::vector<int64_t> right;
  double rounding = 0;  ///< bound of |fp32 - exact| of a product, for a query of length 1

  const float* query(int64_t q) const { return queries.const_data_ptr<float>() + q * queries.size(1); }
  const float* candidate(int64_t c) const { return candidates.const_data_ptr<float>() + c * candidates.size(1); }
  Place place(int64_t q, int64_t c) const { return {exact_product(query(q), candidate(c), queries.size(1)), c}; }

  /// Where the best of the right candidates stands.
  Place best_right(int64_t q) const {
    Place best{};
    for (auto i = right_begin[static_cast<size_t>(q)]; i < right_begin[static_cast<size_t>(q) + 1]; ++i) {
      const auto each = place(q, right[static_cast<size_t>(i)]);
      if (i == right_begin[static_cast<size_t>(q)] || each.is_before(best)) best = each;
    }
    return best;
  }
};

/// An fp32 sum of E products is off by less than E eps |a| |b| in any order; the factor covers the lengths' rounding.
double rounding_bound(const torch::Tensor& candidates) {
  const auto lengths = candidates.norm(2, {1}, false, at::kDouble);
  const auto finite = lengths.masked_select(lengths.isfinite());
  const auto longest = finite.numel() == 0 ? 0.0 : finite.max().item<double>();
  constexpr double kEpsilon = std::numeric_limits<float>::epsilon();
  return 1.01 * static_cast<double>(candidates.size(1) + 2) * kEpsilon * longest;
}

/// What is known of one query while the tiles go by.
struct Query {
  Place own;
  float low;
  float high;
};

Query prepare(const Direction& direction, int64_t q) {
  const auto own = direction.best_right(q);
  const auto* values = direction.query(q);
  const auto length = std::sqrt(std::max(0.0, exact_product(values, values, direction.queries.size(1))));
  const auto rounding = direction.rounding * length + std::numeric_limits<float>::min();
  const auto low = std::nextafter(static_cast<float>(own.score - rounding), -std::numeric_limits<float>::infinity());
  const auto high = std::nextafter(static_cast<float>(own.score + rounding), std::numeric_limits<float>::infinity());
  return {own, low, high};
}

/// How many candidates [begin, begin + size) stand before the query's own. A score that is neither above nor below, as
/// one that is not a number, is made again.
int64_t count_before(const Direction& direction, int64_t q, const Query& query, const float* scores, int64_t begin,
                     int64_t size) {
  const auto count = count_tile(scores, size, query.low, query.high);
  auto before = count.above;
  for (int64_t j = 0, left = count.unsure; left > 0; ++j) {
    if (scores[j] > query.high || scores[j] < query.low) continue;
    --left;
    if (direction.place(q, begin + j).is_before(query.own)) ++before;
  }
  return before;
}

void rank_tile(const Direction& direction, int64_t begin, int64_t end, int64_t* ranks) {
  std::vector<Query> queries;
  for (int64_t q = begin; q < end; ++q) queries.push_back(prepare(direction, q));
  const auto rows = direction.queries.slice(0, begin, end);
  const auto num_candidates = direction.candidates.size(0);
  auto buffer = at::empty({(end - begin) * std::min(kCandidateTile, num_candidates)});
  for (int64_t first = 0; first < num_candidates; first += kCandidateTile) {
    const auto size = std::min(kCandidateTile, num_candidates - first);
    auto scores = buffer.narrow(0, 0, (end - begin) * size).view({end - begin, size});
    at::mm_out(scores, rows, direction.candidates.narrow(0, first, size).t());
    for (int64_t q = begin; q < end; ++q) {
      const auto* row = scores.const_data_ptr<float>() + (q - begin) * size;
      ranks[q] += count_before(direction, q, queries[static_cast<size_t>(q - begin)], row, first, size);
    }
  }
}

/// Every rank takes every W-th tile; within one the threads do. [Q] int64
torch::Tensor ranks_of(const Direction& direction, const distributed::ProcessGroup& group) {
  const auto num_queries = direction.queries.size(0);
  auto ranks = at::zeros({num_queries}, at::kLong);
  auto* values = ranks.data_ptr<int64_t>();
  const auto num_tiles = (num_queries + kQueryTile - 1) / kQueryTile;
  const auto own_tiles = (num_tiles - group.rank() + group.size() - 1) / group.size();
  std::atomic<int64_t> next = 0;
  at::parallel_for(0, std::min<int64_t>(own_tiles, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    for (auto i = next++; i < own_tiles; i = next++) {
      const auto begin = (group.rank() + i * group.size()) * kQueryTile;
      rank_tile(direction, begin, std::min(num_queries, begin + kQueryTile), values);
    }
  });
  if (!group.is_alone()) group.all_reduce(ranks);
  return ranks;
}

RetrievalDirection summarize(const torch::Tensor& ranks, const std::vector<int64_t>& recall_at) {
  std::vector<int64_t> sorted(ranks.const_data_ptr<int64_t>(), ranks.const_data_ptr<int64_t>() + ranks.numel());
  std::sort(sorted.begin(), sorted.end());
  const auto count = static_cast<double>(sorted.size());
  RetrievalDirection result;
  for (const auto k : recall_at) {
    const auto hits = std::lower_bound(sorted.begin(), sorted.end(), k) - sorted.begin();
    result.recall.push_back(static_cast<double>(hits) / count);
  }
  int64_t sum = 0;
  for (const auto rank : sorted) sum += rank;
  result.mean_rank = static_cast<double>(sum) / count + 1;
  const auto middle_sum = sorted[(sorted.size() - 1) / 2] + sorted[sorted.size() / 2];
  result.median_rank = static_cast<double>(middle_sum / 2 + 1);
  result.ranks = ranks;
  return result;
}

void check(const torch::Tensor& images, const torch::Tensor& texts, const torch::Tensor& index,
           const RetrievalOptions& options) {
  TORCH_CHECK(images.dim() == 2 && texts.dim() == 2 && images.size(1) == texts.size(1) && images.size(1) >= 1 &&
                  at::isFloatingType(images.scalar_type()) && at::isFloatingType(texts.scalar_type()),
              "[retrieval] image and text features must be floating point [N, E] and [M, E], but are ",
              images.scalar_type(), " ", images.sizes(), " and ", texts.scalar_type(), " ", texts.sizes());
  TORCH_CHECK(images.size(0) >= 1, "[retrieval] there must be at least one image");
  TORCH_CHECK(index.dim() == 1 && index.size(0) == texts.size(0) && index.scalar_type() == at::kLong,
              "[retrieval] text_image_index must be int64 [", texts.size(0), "], but is ", index.scalar_type(), " ",
              index.sizes());
  for (const auto k : options.recall_at) {
    if (k < 1) throw ConfigError(fmt::format("[retrieval] recall_at must be numbers of at least 1, but one is {}", k));
  }
}

/// The texts of each image. Throws: DataError.
void fill_right_texts(Direction& direction, const int64_t* index, int64_t num_images, int64_t num_texts) {
  direction.right_begin.assign(static_cast<size_t>(num_images) + 1, 0);
  for (int64_t text = 0; text < num_texts; ++text) {
    if (index[text] < 0 || index[text] >= num_images) {
      throw DataError(fmt::format("[retrieval] text {}: the index of its image must be in [0, {}), but is {}", text,
                                  num_images, index[text]));
    }
    ++direction.right_begin[static_cast<size_t>(index[text]) + 1];
  }
  for (size_t image = 0; image < static_cast<size_t>(num_images); ++image) {
    if (direction.right_begin[image + 1] == 0) throw DataError(fmt::format("[retrieval] image {} has no text", image));
    direction.right_begin[image + 1] += direction.right_begin[image];
  }
  auto next = direction.right_begin;
  direction.right.resize(static_cast<size_t>(num_texts));
  for (int64_t text = 0; text < num_texts; ++text) {
    direction.right[static_cast<size_t>(next[static_cast<size_t>(index[text])]++)] = text;
  }
}

}  // namespace

RetrievalMetrics retrieval_metrics(const torch::Tensor& image_features, const torch::Tensor& text_features,
                                   const torch::Tensor& text_image_index, const RetrievalOptions& options,
                                   const distributed::ProcessGroup& group) {
  check(image_features, text_features, text_image_index, options);
  const auto images = image_features.detach().to(at::kCPU, at::kFloat).contiguous();
  const auto texts = text_features.detach().to(at::kCPU, at::kFloat).contiguous();
  const auto index = text_image_index.to(at::kCPU).contiguous();
  const auto num_images = images.size(0);
  const auto num_texts = texts.size(0);
  Direction to_text{images, texts, {}, {}, rounding_bound(texts)};
  fill_right_texts(to_text, index.const_data_ptr<int64_t>(), num_images, num_texts);
  Direction to_image{texts, images, {}, {}, rounding_bound(images)};
  to_image.right.assign(index.const_data_ptr<int64_t>(), index.const_data_ptr<int64_t>() + num_texts);
  for (int64_t text = 0; text <= num_texts; ++text) to_image.right_begin.push_back(text);
  return {summarize(ranks_of(to_image, group), options.recall_at),
          summarize(ranks_of(to_text, group), options.recall_at)};
}

}  // namespace contrastive::eval
