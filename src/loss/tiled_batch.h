#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include <torch/types.h>

#include "contrastive/distributed/process_group.h"
#include "contrastive/loss/contrastive_loss.h"

#include "loss/tile_kernels.h"

namespace contrastive::loss::detail {

/// Part of the pairs of a rank's images (rows) with the texts of all ranks (columns).
struct TilePlace {
  int64_t row, rows, column, columns;
  size_t slot;  ///< where in the scratch memory its products lie
};

/// Which gradients are asked for: of the features, and of scalars such as the scale.
struct NeededGradients {
  bool image = false, text = false, scalars = false;

  bool any() const { return image || text || scalars; }
};

NeededGradients needed_gradients(const torch::Tensor& image, const torch::Tensor& text,
                                 std::initializer_list<torch::Tensor> scalars);

/// Derivatives of the global loss by this rank's rows, and this rank's share of that by the scale. Undefined if not
/// asked for.
struct FeatureGradients {
  torch::Tensor image, text;  ///< [B, D]
  torch::Tensor scale;        ///< []
};

/// The pairs of one rank's images with all texts, a tile at a time: nothing of the size of all pairs is ever held.
class TiledBatch {
 public:
  /// Shapes: image, text [B, D], this rank's; computed with in `dtype`.
  TiledBatch(const torch::Tensor& image, const torch::Tensor& text, torch::ScalarType dtype,
             const distributed::ProcessGroup& group);
  TiledBatch(const TiledBatch&) = delete;
  TiledBatch& operator=(const TiledBatch&) = delete;

  int64_t rows() const { return rows_; }                       ///< B
  int64_t all_rows() const { return rows_ * group_.size(); }   ///< N
  int64_t first_row() const { return rows_ * group_.rank(); }  ///< of this rank in the global batch
  const torch::Tensor& image() const { return image_; }        ///< [B, D]
  const torch::Tensor& text() const { return text_; }          ///< [B, D]

  /// What tiles' statistics hold as the maximum of no logits.
  double lowest() const;

  /// In place, over all ranks; nothing is done if there is one only.
  void all_reduce(const torch::Tensor& tensor, distributed::ReduceOp op) const;

  /// Mean of the losses [B] of all ranks' rows, and the share of rows whose own logit is the first of the largest.
  ContrastiveLossOutput mean_over_ranks(const torch::Tensor& losses, const torch::Tensor& own,
                                        const torch::Tensor& before, const torch::Tensor& after) const;

  /// Starts fetching the other ranks' texts.
  void start_gathering();

  /// All tiles. Those of this rank's own texts come first, while the others' are on their way.
  const std::vector<TilePlace>& places() const { return places_; }

  /// The products of a tile's pairs (`place`: one of places()), valid until the next call. Those of the last few tiles
  /// are still there: asking for them again costs nothing.
  Tile products(const TilePlace& place);

  /// Adds what a tile contributes to the gradients, given the derivatives by its logits, which have replaced the
  /// products that were asked for last.
  void add_gradients(const TilePlace& place, const torch::Tensor& slopes, const NeededGradients& needed);

  /// The gradients that were added up, times `factor` (and, for features, scale); ranks exchange theirs of the texts.
  FeatureGradients take_gradients(const torch::Tensor& scale, double factor, const NeededGradients& needed);

 private:
  torch::Tensor text_rows(const TilePlace& place);
  void add_places(int64_t begin, int64_t end);
  void assign_slots();

  distributed::ProcessGroup group_;
  int64_t rows_;
  torch::Tensor image_, text_;  // [B, D]
  torch::Tensor gathered_;      // [N, D], in the texts' own precision
  torch::Tensor all_text_;      // [N, D], undefined as long as it is being gathered
  distributed::Pending gathering_;
  torch::Tensor image_gradient_, text_gradient_;  // [B, D], [N, D]
  std::vector<TilePlace> places_;
  torch::Tensor scratch_;               // [slots, pairs of a tile]
  std::vector<const TilePlace*> held_;  // whose products are in each slot; null for none
};

/// What backward returns: the gradients that forward saved, times that of the loss; undefined ones stay so.
std::vector<torch::Tensor> scaled(const std::vector<torch::Tensor>& gradients, const torch::Tensor& factor);

}  // namespace contrastive::loss::detail
