#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <torch/types.h>

#include "contrastive/distributed/process_group.h"
#include "contrastive/loss/contrastive_loss.h"

#include "loss/loss_inputs.h"
#include "loss/tile_kernels.h"

namespace contrastive::loss::detail {

/// Part of the pairs of a rank's rows with the columns of all ranks.
struct TilePlace {
  int64_t row, rows, column, columns;
  size_t slot;  ///< where in the scratch memory its products lie
};

/// Derivatives of the global loss by this rank's rows, and this rank's share of that by the scale. Undefined if not
/// asked for.
struct FeatureGradients {
  torch::Tensor image, text;  ///< [B, D]
  torch::Tensor scale;        ///< []
};

/// The pairs of one rank's rows with the columns of all ranks, a tile at a time: nothing of the size of all pairs is
/// ever held.
///
/// Rows are images and columns texts, whose gradients ranks exchange. Where only the texts need gradients it is the
/// other way round: then all ranks' images are fetched, texts stay where they are, and so do their gradients.
class TiledBatch {
 public:
  /// Shapes: image, text [B, D], this rank's; computed with in `dtype`. `needed`: the same on all ranks.
  TiledBatch(const torch::Tensor& image, const torch::Tensor& text, torch::ScalarType dtype,
             const NeededGradients& needed, const distributed::ProcessGroup& group);
  TiledBatch(const TiledBatch&) = delete;
  TiledBatch& operator=(const TiledBatch&) = delete;

  int64_t rows() const { return rows_; }                                     ///< B
  int64_t all_rows() const { return rows_ * group_.size(); }                 ///< N
  int64_t first_row() const { return rows_ * group_.rank(); }                ///< of this rank in the global batch
  const torch::Tensor& row_features() const { return row_features_; }        ///< [B, D]
  const torch::Tensor& column_features() const { return column_features_; }  ///< [B, D], this rank's

  /// What tiles' statistics hold as the maximum of no logits.
  double lowest() const;

  /// In place, over all ranks; nothing is done if there is one only.
  void all_reduce(const torch::Tensor& tensor, distributed::ReduceOp op) const;

  /// Mean of the losses [B] of all ranks' rows, and the share of images whose own logit is the first of the largest.
  /// own, before, after [B]: the rows' own logits, and the largest of those before and after the own one.
  ContrastiveLossOutput mean_over_ranks(const torch::Tensor& losses, const torch::Tensor& own,
                                        const torch::Tensor& before, const torch::Tensor& after) const;

  /// Starts fetching the other ranks' columns.
  void start_gathering();

  /// All tiles. Those of this rank's own columns come first, while the others' are on their way.
  const std::vector<TilePlace>& places() const { return places_; }

  /// The products of a tile's pairs (`place`: one of places()), valid until the next call. Those of the last few tiles
  /// are still there: asking for them again costs nothing.
  Tile products(const TilePlace& place);

  /// To be called once for every tile, with its products, before mean_over_ranks: where images are columns, a row's
  /// statistics can't tell whether an image's own text scores highest.
  void add_accuracy_statistics(const TilePlace& place, const Tile& tile, const torch::Tensor& scale);

  /// Adds what a tile contributes to the gradients, given the derivatives by its logits, which have replaced the
  /// products that were asked for last.
  void add_gradients(const TilePlace& place, const torch::Tensor& slopes);

  /// The gradients that were added up, times `factor` (and, for features, scale); ranks exchange theirs of the columns.
  FeatureGradients take_gradients(const torch::Tensor& scale, double factor);

 private:
  torch::Tensor columns_of(const TilePlace& place);
  void add_places(int64_t begin, int64_t end);
  void assign_slots();

  distributed::ProcessGroup group_;
  bool rows_are_texts_;
  bool needs_rows_, needs_columns_;  // their gradients
  int64_t rows_;
  torch::Tensor row_features_, column_features_;  // [B, D]
  torch::Tensor gathered_;                        // [N, D], in the columns' own precision
  torch::Tensor all_columns_;                     // [N, D], undefined as long as it is being gathered
  distributed::Pending gathering_;
  torch::Tensor row_gradient_, column_gradient_;  // [B, D], [N, D]
  ColumnMaxima column_maxima_;                    // [N], if rows are texts
  std::vector<TilePlace> places_;
  torch::Tensor scratch_;               // [slots, pairs of a tile]
  std::vector<const TilePlace*> held_;  // whose products are in each slot; null for none
};

/// What backward returns: the gradients that forward saved, times that of the loss; undefined ones stay so.
std::vector<torch::Tensor> scaled(const std::vector<torch::Tensor>& gradients, const torch::Tensor& factor);

}  // namespace contrastive::loss::detail
