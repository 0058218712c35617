#include "contrastive/loss/contrastive_loss.h"

#include <limits>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "contrastive/models/precision.h"

#include "loss/loss_inputs.h"
#include "loss/tiled_batch.h"

namespace contrastive::loss {
namespace {

using distributed::ReduceOp;

constexpr const char* kOperation = "contrastive_loss";

// Logits in [-x, x] with 2 x below this: exp(logit - x) and its sums are normal fp32 numbers whatever the logits are.
constexpr double kLargestShiftedSpan = 80;
// Logits are rounded: this much above the bound they are in any case below.
constexpr double kRoundingRoom = 1.001;

/// The softmax over each row or over each column.
struct Softmax {
  torch::Tensor reference;  ///< [B] or [N], at least the maximum of the logits
  torch::Tensor total;      ///< [B] or [N], sum of exp(logit - reference)
  torch::Tensor loss;       ///< [B], cross-entropy with the own pair as target
  torch::Tensor doubt;      ///< [B], what the softmax gives to all other pairs
};

/// Loss and gradients of one rank's rows.
///
/// A first sweep over the tiles gives the softmax denominators of rows and columns, a second one the gradients. Own
/// pairs are kept apart from the sums: cross-entropy and gradient of a pair that is nearly certain depend on how little
/// the others weigh, which is lost where 1 is added to it.
class SoftmaxLoss {
 public:
  SoftmaxLoss(const torch::Tensor& image, const torch::Tensor& text, const torch::Tensor& scale,
              const detail::NeededGradients& needed, const distributed::ProcessGroup& group)
      : batch_(image, text, scale.scalar_type(), needed, group), scale_(scale) {}

  ContrastiveLossOutput forward() {
    shift_ = common_shift();
    batch_.start_gathering();
    const auto rows = batch_.rows(), columns = batch_.all_rows();
    row_sums_ = {filled({rows}, 0), filled({rows}, batch_.lowest()), filled({rows}, batch_.lowest()),
                 filled({rows}, 0)};
    column_sums_ = {filled({columns}, batch_.lowest()), filled({columns}, 0)};
    for (const auto& place : batch_.places()) {
      const auto tile = batch_.products(place);
      detail::add_softmax_statistics(tile, scale_, shift_, part_of_rows(place), part_of_columns(place));
      batch_.add_accuracy_statistics(place, tile, scale_);
    }
    finish_rows();
    finish_columns();
    return batch_.mean_over_ranks((row_.loss + column_.loss).mul_(0.5), row_sums_.own, row_sums_.before,
                                  row_sums_.after);
  }

  /// Of the loss that forward() returned.
  detail::FeatureGradients backward() {
    const auto row_factor = row_.total.reciprocal(), column_factor = column_.total.reciprocal();
    const auto own_weights = (row_.doubt + column_.doubt).neg_();
    // Backwards, as the products of the last tiles are still there.
    for (auto place = batch_.places().rbegin(); place != batch_.places().rend(); ++place) {
      const auto of_rows = [&](const torch::Tensor& tensor) { return tensor.narrow(0, place->row, place->rows); };
      const auto of_columns = [&](const torch::Tensor& tensor) {
        return tensor.narrow(0, place->column, place->columns);
      };
      const auto tile = batch_.products(*place);
      detail::products_to_weights(tile, scale_, shift_, {of_rows(row_.reference), of_rows(row_factor)},
                                  {of_columns(column_.reference), of_columns(column_factor)}, of_rows(own_weights));
      batch_.add_gradients(*place, tile.products);
    }
    return batch_.take_gradients(scale_, 0.5 / static_cast<double>(batch_.all_rows()));
  }

 private:
  /// A bound of all logits if it is small enough to be subtracted from each, else infinity. The same on all ranks.
  torch::Tensor common_shift() const {
    const auto largest_norm = [](const torch::Tensor& features) {
      return at::linalg_vector_norm(features, 2, 1).max();
    };
    const auto norms = at::stack({largest_norm(batch_.row_features()), largest_norm(batch_.column_features())});
    batch_.all_reduce(norms, ReduceOp::max);
    const auto bound = norms.prod() * scale_.abs() * kRoundingRoom;
    return bound.masked_fill(bound.ge(kLargestShiftedSpan / 2).logical_or_(bound.isnan()),
                             std::numeric_limits<double>::infinity());
  }

  void finish_rows() {
    const auto reference = at::where(shift_.isfinite(), shift_, at::maximum(row_sums_.before, row_sums_.after));
    const auto joint = at::maximum(reference, row_sums_.own);
    const auto others = row_sums_.sum * (reference - joint).exp_();
    row_ = softmax_of(joint, others + (row_sums_.own - joint).exp_(), others, joint);
  }

  /// Each rank has summed its rows' part of every column, and knows the own pairs of its columns.
  void finish_columns() {
    const auto begin = batch_.first_row(), size = batch_.rows();
    const auto reference = at::where(shift_.isfinite(), shift_, column_sums_.maximum);
    auto joint = reference.clone();
    const auto own_joint = joint.narrow(0, begin, size);
    own_joint.copy_(at::maximum(own_joint, row_sums_.own));
    batch_.all_reduce(joint, ReduceOp::max);
    auto sums = filled({2, batch_.all_rows()}, 0);  // of the other pairs, and of the own pair
    sums[0].copy_(column_sums_.sum * (reference - joint).exp_());
    sums[1].narrow(0, begin, size).copy_((row_sums_.own - own_joint).exp_());
    batch_.all_reduce(sums, ReduceOp::sum);
    column_ = softmax_of(joint, sums.sum(0), sums[0].narrow(0, begin, size), own_joint);
  }

  /// `others`: sums of exp(logit - reference) of the pairs beside the own ones.
  Softmax softmax_of(const torch::Tensor& reference, const torch::Tensor& total, const torch::Tensor& others,
                     const torch::Tensor& own_reference) const {
    // With e the logit of all other pairs together, relative to the own pair's: loss = log(1 + exp(e)).
    const auto excess = others.log().add_(own_reference - row_sums_.own);
    return {reference, total, at::log_sigmoid(-excess).neg_(), excess.sigmoid()};
  }

  torch::Tensor filled(at::IntArrayRef sizes, double value) const { return at::full(sizes, value, scale_.options()); }

  detail::RowStatistics part_of_rows(const detail::TilePlace& place) const {
    const auto part = [&](const torch::Tensor& tensor) { return tensor.narrow(0, place.row, place.rows); };
    return {part(row_sums_.own), part(row_sums_.before), part(row_sums_.after), part(row_sums_.sum)};
  }

  detail::ColumnStatistics part_of_columns(const detail::TilePlace& place) const {
    const auto part = [&](const torch::Tensor& tensor) { return tensor.narrow(0, place.column, place.columns); };
    return {part(column_sums_.maximum), part(column_sums_.sum)};
  }

  detail::TiledBatch batch_;
  torch::Tensor scale_, shift_;  // []
  detail::RowStatistics row_sums_;
  detail::ColumnStatistics column_sums_;
  Softmax row_, column_;
};

/// The loss is a scalar, so the gradients of its inputs are known in the forward pass up to a factor.
class ContrastiveLossFunction : public torch::autograd::Function<ContrastiveLossFunction> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const torch::Tensor& image,
                                                const torch::Tensor& text, const torch::Tensor& scale,
                                                const detail::NeededGradients& needed,
                                                const distributed::ProcessGroup& group) {
    const auto dtype = at::promote_types(image.scalar_type(), at::kFloat);
    SoftmaxLoss softmax(image, text, scale.to(dtype), needed, group);
    const auto output = softmax.forward();
    if (needed.any()) {
      const auto gradients = softmax.backward();
      context->save_for_backward({gradients.image, gradients.text, gradients.scale});
    }
    context->mark_non_differentiable({output.accuracy});
    return {output.loss, output.accuracy};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    auto results = detail::scaled(context->get_saved_variables(), gradients[0]);
    results.resize(5);
    return results;
  }
};

}  // namespace

ContrastiveLossOutput contrastive_loss(const torch::Tensor& image_features, const torch::Tensor& text_features,
                                       const torch::Tensor& logit_scale, const distributed::ProcessGroup& group) {
  detail::check_features(kOperation, image_features, text_features);
  detail::check_scalar(kOperation, "logit_scale", logit_scale, image_features);
  const auto needed = detail::needed_gradients(image_features, text_features, {logit_scale});
  detail::check_same_on_all_ranks(kOperation, image_features, needed, group);
  const models::AutocastGuard no_autocast(image_features.device().type(), /*bf16=*/false);
  const auto output = ContrastiveLossFunction::apply(image_features, text_features, logit_scale, needed, group);
  return {output[0], output[1]};
}

}  // namespace contrastive::loss
