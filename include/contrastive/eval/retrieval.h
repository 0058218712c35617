#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/distributed/process_group.h"

namespace contrastive::eval {

struct RetrievalOptions {
  std::vector<int64_t> recall_at = {1, 5, 10};
};

/// How well the queries of one direction find what belongs to them.
struct RetrievalDirection {
  std::vector<double> recall;  ///< for each k of recall_at: share of queries with a hit among the first k, in [0, 1]
  double mean_rank = 0;        ///< counted from 1
  double median_rank = 0;      ///< counted from 1; floor(median of the ranks from 0) + 1, as open_clip's
  torch::Tensor ranks;         ///< [queries] int64, counted from 0
};

struct RetrievalMetrics {
  RetrievalDirection image_retrieval;  ///< texts look for their image: CLIP_benchmark's image_retrieval_recall@k
  RetrievalDirection text_retrieval;   ///< images look for any one of their texts: the rank is that of the best
};

/// Ranks all images for every text and all texts for every image by inner product (the cosine, for L2-normalised rows).
///
/// Exact: products are compared in fp32 where the difference is beyond rounding, else in fp64; so the ranks don't
/// depend on tiles, threads, matrix library or ranks. Of equal candidates the lower index stands before (also before
/// the right one: equal features give no perfect recall); a score that is not a number stands last.
/// Shapes: image_features [N, E], text_features [M, E], floating point; text_image_index [M] int64, each text's image.
/// Memory: 2 MB of scores a thread, never N x M. Runs on the CPU; features elsewhere are copied.
/// Over several ranks all pass the same features and take their share of the queries; all get the same result, which is
/// that of one rank to the bit.
/// Throws: DataError if an index is not in [0, N) or an image has no text; ConfigError if a k is below 1; Error on
/// other shapes or dtypes, or if there is no image. Source: open_clip's get_clip_metrics and CLIP_benchmark's
/// zeroshot_retrieval (hits). Deviates: order of ties.
CONTRASTIVE_API RetrievalMetrics retrieval_metrics(const torch::Tensor& image_features,
                                                   const torch::Tensor& text_features,
                                                   const torch::Tensor& text_image_index,
                                                   const RetrievalOptions& options = {},
                                                   const distributed::ProcessGroup& group = {});

}  // namespace contrastive::eval
