#include "loss/tiled_batch.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "loss/tile_math.h"

namespace contrastive::loss::detail {
namespace {

/// Sizes of tiles and of the memory for them, in pairs.
struct TileSizes {
  int64_t rows, pairs, scratch;
};

// Measured: small enough for the caches, large enough for matrix products. A batch that fits into the scratch memory as
// a whole needs its products only once.
constexpr TileSizes kTilesOnCpu{1 << 10, 1 << 20, 1 << 22};
// 32 MiB of fp32, which stay in the second-level cache.
constexpr TileSizes kTilesOnGpu{1 << 11, 1 << 23, 1 << 23};
// Rows whose products are summed together.
constexpr int64_t kSummedRows = 1024;

/// Size of the parts if `total` is cut into equal parts of at most `largest`, rounded up to whole vectors.
int64_t part_size(int64_t total, int64_t largest) {
  constexpr int64_t kVector = 16;
  const auto parts = (total + largest - 1) / largest;
  const auto size = (total + parts - 1) / parts;
  return std::min(total, (size + kVector - 1) / kVector * kVector);
}

/// Sum of a * b in double precision, without a temporary of their size. Shapes: [n, D].
torch::Tensor sum_of_products(const torch::Tensor& a, const torch::Tensor& b) {
  auto sum = at::zeros({}, a.options().dtype(at::kDouble));
  for (int64_t begin = 0; begin < a.size(0); begin += kSummedRows) {
    const auto size = std::min(kSummedRows, a.size(0) - begin);
    sum += (a.narrow(0, begin, size) * b.narrow(0, begin, size)).sum(at::kDouble);
  }
  return sum;
}

}  // namespace

TiledBatch::TiledBatch(const torch::Tensor& image, const torch::Tensor& text, torch::ScalarType dtype,
                       const NeededGradients& needed, const distributed::ProcessGroup& group)
    : group_(group),
      rows_are_texts_(!group.is_alone() && needed.text && !needed.image),
      needs_rows_(rows_are_texts_ || needed.image),
      needs_columns_(!rows_are_texts_ && needed.text),
      rows_(image.size(0)),
      row_features_((rows_are_texts_ ? text : image).to(dtype).contiguous()),
      column_features_((rows_are_texts_ ? image : text).to(dtype).contiguous()) {
  if (group_.is_alone()) {
    all_columns_ = column_features_;
  } else {
    gathered_ = (rows_are_texts_ ? image : text).contiguous();
  }
  if (rows_are_texts_) {
    const auto filled = [&] { return at::full({all_rows()}, lowest(), row_features_.options()); };
    column_maxima_ = {filled(), filled(), filled()};
  }
  add_places(first_row(), first_row() + rows_);
  add_places(0, first_row());
  add_places(first_row() + rows_, all_rows());
  assign_slots();
}

void TiledBatch::add_places(int64_t begin, int64_t end) {
  if (begin == end) return;
  const auto& sizes = row_features_.is_cpu() ? kTilesOnCpu : kTilesOnGpu;
  const auto rows = part_size(rows_, sizes.rows);
  const auto columns = part_size(end - begin, std::max<int64_t>(1, sizes.pairs / rows));
  for (int64_t column = begin; column < end; column += columns) {
    for (int64_t row = 0; row < rows_; row += rows) {
      places_.push_back({row, std::min(rows, rows_ - row), column, std::min(columns, end - column), 0});
    }
  }
}

void TiledBatch::assign_slots() {
  int64_t largest = 0;
  for (const auto& place : places_) largest = std::max(largest, place.rows * place.columns);
  const auto memory = (row_features_.is_cpu() ? kTilesOnCpu : kTilesOnGpu).scratch;
  const auto slots = std::clamp<int64_t>(memory / largest, 1, static_cast<int64_t>(places_.size()));
  scratch_ = at::empty({slots, largest}, row_features_.options());
  held_.assign(static_cast<size_t>(slots), nullptr);
  for (size_t i = 0; i < places_.size(); ++i) places_[i].slot = i % held_.size();
}

double TiledBatch::lowest() const {
  return row_features_.scalar_type() == at::kDouble ? kLowest<double> : static_cast<double>(kLowest<float>);
}

void TiledBatch::all_reduce(const torch::Tensor& tensor, distributed::ReduceOp op) const {
  if (!group_.is_alone()) group_.all_reduce(tensor, op);
}

ContrastiveLossOutput TiledBatch::mean_over_ranks(const torch::Tensor& losses, const torch::Tensor& own,
                                                  const torch::Tensor& before, const torch::Tensor& after) const {
  auto hits = (before < own).logical_and_(after <= own);
  if (rows_are_texts_) {
    const auto others = at::stack({column_maxima_.before, column_maxima_.after});  // [2, N]
    all_reduce(others, distributed::ReduceOp::max);
    const auto of_rank = [&](const torch::Tensor& tensor) { return tensor.narrow(0, first_row(), rows_); };
    const auto own_logit = of_rank(column_maxima_.own);
    hits = (of_rank(others[0]) < own_logit).logical_and_(of_rank(others[1]) <= own_logit);
  }
  auto totals = at::stack({losses.sum(at::kDouble), hits.sum(at::kDouble)});
  all_reduce(totals, distributed::ReduceOp::sum);
  totals = totals.div_(all_rows()).to(losses.scalar_type());
  return {totals[0], totals[1]};
}

void TiledBatch::start_gathering() {
  if (group_.is_alone()) return;
  const auto own = gathered_;
  gathered_ = at::empty({all_rows(), own.size(1)}, own.options());
  gathering_ = group_.start_all_gather(gathered_, own);
}

torch::Tensor TiledBatch::columns_of(const TilePlace& place) {
  const auto in_own = place.column - first_row();
  if (in_own >= 0 && in_own + place.columns <= rows_) return column_features_.narrow(0, in_own, place.columns);
  if (!all_columns_.defined()) {
    gathering_.wait();
    all_columns_ = gathered_.to(column_features_.scalar_type());
    gathered_.reset();
  }
  return all_columns_.narrow(0, place.column, place.columns);
}

Tile TiledBatch::products(const TilePlace& place) {
  auto result = scratch_[static_cast<int64_t>(place.slot)].narrow(0, 0, place.rows * place.columns);
  result = result.view({place.rows, place.columns});
  auto& held = held_[place.slot];
  if (held != &place) at::mm_out(result, row_features_.narrow(0, place.row, place.rows), columns_of(place).t());
  held = &place;
  return {result, first_row() + place.row - place.column};
}

void TiledBatch::add_accuracy_statistics(const TilePlace& place, const Tile& tile, const torch::Tensor& scale) {
  if (!rows_are_texts_) return;
  const auto part = [&](const torch::Tensor& tensor) { return tensor.narrow(0, place.column, place.columns); };
  add_column_maxima(tile, scale, {part(column_maxima_.own), part(column_maxima_.before), part(column_maxima_.after)});
}

void TiledBatch::add_gradients(const TilePlace& place, const torch::Tensor& slopes) {
  held_[place.slot] = nullptr;
  if (needs_rows_ || !needs_columns_) {
    if (!row_gradient_.defined()) row_gradient_ = at::zeros_like(row_features_);
    row_gradient_.narrow(0, place.row, place.rows).addmm_(slopes, columns_of(place));
  }
  if (needs_columns_) {
    if (!column_gradient_.defined()) {
      column_gradient_ = at::zeros({all_rows(), column_features_.size(1)}, column_features_.options());
    }
    column_gradient_.narrow(0, place.column, place.columns)
        .addmm_(slopes.t(), row_features_.narrow(0, place.row, place.rows));
  }
}

FeatureGradients TiledBatch::take_gradients(const torch::Tensor& scale, double factor) {
  // A logit is scale <row, column>, so either side's features times their gradients give the sum of slope * product.
  const auto by_scale = row_gradient_.defined() ? sum_of_products(row_gradient_, row_features_)
                                                : sum_of_products(column_gradient_, all_columns_);
  FeatureGradients result;
  result.scale = (by_scale * factor).to(row_features_.scalar_type());
  auto& of_rows = rows_are_texts_ ? result.text : result.image;
  auto& of_columns = rows_are_texts_ ? result.image : result.text;
  if (needs_rows_) of_rows = row_gradient_.mul_(scale * factor);
  if (needs_columns_) {
    of_columns = group_.is_alone() ? column_gradient_ : group_.reduce_scatter(column_gradient_);
    of_columns.mul_(scale * factor);
  }
  return result;
}

std::vector<torch::Tensor> scaled(const std::vector<torch::Tensor>& gradients, const torch::Tensor& factor) {
  // The loss itself was differentiated, as in training: no copies. Not asked on a GPU, as the answer is waited for.
  if (factor.is_cpu() && factor.item<double>() == 1) return gradients;
  std::vector<torch::Tensor> results;
  for (const auto& gradient : gradients) results.push_back(gradient.defined() ? gradient * factor : gradient);
  return results;
}

}  // namespace contrastive::loss::detail
