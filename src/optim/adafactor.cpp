#include "contrastive/optim/adafactor.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <string_view>

#include <ATen/ATen.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>

namespace contrastive::optim {
namespace {

constexpr size_t kMatrixDim = 2;
constexpr int64_t kConvolutionDim = 4;

/// The two longest axes of a part, the longest first, if the second is long enough.
std::optional<std::pair<int64_t, int64_t>> factored_axes(const AdafactorLayout& layout, int64_t min_factored) {
  if (layout.shape.size() < kMatrixDim) return {};
  auto axes = layout.axis_order;
  if (axes.empty()) {
    axes.resize(layout.shape.size());
    std::iota(axes.begin(), axes.end(), int64_t{0});
  }
  const auto length = [&](int64_t axis) { return layout.shape[static_cast<size_t>(axis)]; };
  std::stable_sort(axes.begin(), axes.end(), [&](int64_t a, int64_t b) { return length(a) < length(b); });
  const auto second = axes[axes.size() - 2];
  if (length(second) < min_factored) return {};
  return std::pair(axes.back(), second);
}

std::vector<int64_t> with_length_1(std::vector<int64_t> shape, int64_t axis) {
  shape[static_cast<size_t>(axis)] = 1;
  return shape;
}

/// Divides each part by what its root mean square exceeds the threshold by.
void clip_parts(torch::Tensor& direction, double threshold) {
  std::vector<int64_t> axes(static_cast<size_t>(direction.dim()) - 1);
  std::iota(axes.begin(), axes.end(), int64_t{1});
  auto mean_square = direction.square();
  if (!axes.empty()) mean_square = mean_square.mean(axes, /*keepdim=*/true);
  direction.div_((mean_square.sqrt() / threshold).clamp_min(1));
}

bool ends_with_one_of(std::string_view name, std::initializer_list<std::string_view> ends) {
  return std::any_of(ends.begin(), ends.end(), [&](auto end) { return name.ends_with(end); });
}

/// Query, key and value projections that the parameter packs; 0 if it is none.
int64_t packed_projections(std::string_view name) {
  if (ends_with_one_of(name, {".attn.qkv.weight", ".attn.qkv.bias", ".attn.in_proj_weight", ".attn.in_proj_bias"})) {
    return 3;
  }
  if (ends_with_one_of(name, {".attn_pool.kv.weight", ".attn_pool.kv.bias"})) return 2;
  return ends_with_one_of(name, {".attn_pool.q.weight", ".attn_pool.q.bias"}) ? 1 : 0;
}

bool is_output_projection(std::string_view name) {
  return ends_with_one_of(name, {".attn.proj.weight", ".attn.out_proj.weight", ".attn_pool.proj.weight"});
}

}  // namespace

AdafactorLayout adafactor_layout(const std::string& name, at::IntArrayRef shape, int64_t heads_image,
                                 int64_t heads_text) {
  const int64_t heads = name.starts_with("visual.") ? heads_image : heads_text;
  const auto parts = packed_projections(name);
  if (parts > 0 && !shape.empty() && heads > 0 && shape[0] % (parts * heads) == 0) {
    AdafactorLayout layout{.parts = parts, .shape = {heads, shape[0] / (parts * heads)}};
    layout.shape.insert(layout.shape.end(), shape.begin() + 1, shape.end());
    if (shape.size() == kMatrixDim) layout.axis_order = {2, 0, 1};
    return layout;
  }
  if (is_output_projection(name) && shape.size() == kMatrixDim && heads > 0 && shape[1] % heads == 0) {
    return {.shape = {shape[0], heads, shape[1] / heads}, .axis_order = {1, 2, 0}};
  }
  if (shape.size() == kConvolutionDim) return {.shape = shape.vec(), .axis_order = {2, 3, 1, 0}};
  return {.shape = shape.vec()};
}

Adafactor::Adafactor(NamedTensors parameters, AdafactorOptions options, std::vector<ParameterSettings> settings)
    : Optimizer("adafactor", std::move(parameters), std::move(settings)), options_(std::move(options)) {
  for (const auto& [name, parameter] : this->parameters()) moments_.push_back(make_moments(name, parameter));
}

Adafactor::Moments Adafactor::make_moments(const std::string& name, const torch::Tensor& parameter) const {
  const auto layout =
      options_.layout ? options_.layout(name, parameter.sizes()) : AdafactorLayout{.shape = parameter.sizes().vec()};
  Moments moments;
  moments.shape = {layout.parts};
  moments.shape.insert(moments.shape.end(), layout.shape.begin(), layout.shape.end());
  TORCH_CHECK(c10::multiply_integers(moments.shape) == parameter.numel() &&
                  (layout.axis_order.empty() || layout.axis_order.size() == layout.shape.size()),
              "[adafactor] the layout of ", name, ", ", parameter.sizes(), ", is ", layout.parts, " parts of ",
              at::IntArrayRef(layout.shape), " with axes ", at::IntArrayRef(layout.axis_order));
  const auto zeros = [&](at::IntArrayRef shape) { return at::zeros(shape, parameter.options()); };
  moments.axes = factored_axes(layout, options_.min_factored);
  if (moments.axes) {
    auto& [longer, shorter] = *moments.axes;
    ++longer, ++shorter;  // the parts stand before them
    moments.exp_avg_sq_row = zeros(with_length_1(moments.shape, longer));
    moments.exp_avg_sq_col = zeros(with_length_1(moments.shape, shorter));
  } else {
    moments.exp_avg_sq = zeros(moments.shape);
  }
  if (options_.momentum) {
    const auto dtype = options_.bf16_momentum ? at::kBFloat16 : parameter.scalar_type();
    moments.exp_avg = at::zeros(parameter.sizes(), parameter.options().dtype(dtype));
  }
  return moments;
}

torch::Tensor Adafactor::decay_at(const torch::Tensor& step, at::ScalarType dtype) const {
  return (1 - step.to(dtype).pow(-options_.decay_exponent)).clamp_max(options_.beta2);
}

void Adafactor::update(const std::vector<Update>& updates, const std::optional<torch::Tensor>& grad_divisor) {
  for (const auto& chunk : chunks(updates)) {
    const auto gradients = divided_gradients(chunk, grad_divisor);
    accumulate(chunk, gradients);
    std::vector<torch::Tensor> directions;
    for (size_t i = 0; i < chunk.size(); ++i) {
      directions.push_back(scaled(moments_[chunk[i].index], gradients[i]));
      if (options_.clipping_threshold) clip_parts(directions.back(), *options_.clipping_threshold);
      directions.back() = directions.back().reshape(chunk[i].parameter.sizes());
    }
    if (options_.momentum) add_momentum(chunk, directions);
    descend(chunk, directions);
  }
}

void Adafactor::accumulate(std::span<const Update> updates, const std::vector<torch::Tensor>& gradients) {
  std::vector<torch::Tensor> kept, squares;
  for (size_t i = 0; i < updates.size(); ++i) {
    const auto& moments = moments_[updates[i].index];
    const auto square = gradients[i].reshape(moments.shape).square();
    if (moments.axes) {
      kept.insert(kept.end(), {moments.exp_avg_sq_row, moments.exp_avg_sq_col});
      squares.push_back(square.mean(moments.axes->first, /*keepdim=*/true));
      squares.push_back(square.mean(moments.axes->second, /*keepdim=*/true));
    } else {
      kept.push_back(moments.exp_avg_sq);
      squares.push_back(square);
    }
  }
  const auto decay = decay_at(step_of(updates.front().index), gradients.front().scalar_type());
  at::_foreach_add_(squares, options_.eps);
  at::_foreach_mul_(squares, 1 - decay);
  at::_foreach_mul_(kept, decay);
  at::_foreach_add_(kept, squares);
}

torch::Tensor Adafactor::scaled(const Moments& moments, const torch::Tensor& gradient) const {
  const auto shaped = gradient.reshape(moments.shape);
  if (!moments.axes) return shaped * moments.exp_avg_sq.rsqrt();
  const auto& row = moments.exp_avg_sq_row;
  const auto row_factor = (row / row.mean(moments.axes->second, /*keepdim=*/true)).rsqrt();
  return (shaped * row_factor).mul_(moments.exp_avg_sq_col.rsqrt());
}

void Adafactor::add_momentum(std::span<const Update> updates, std::vector<torch::Tensor>& directions) {
  const double kept =
      options_.bf16_momentum
          ? static_cast<double>(static_cast<float>(c10::BFloat16(static_cast<float>(*options_.momentum))))
          : *options_.momentum;
  at::_foreach_mul_(directions, 1 - *options_.momentum);
  for (size_t i = 0; i < updates.size(); ++i) {
    auto& exp_avg = moments_[updates[i].index].exp_avg;
    directions[i].add_(exp_avg, kept);
    exp_avg.copy_(directions[i]);
  }
}

NamedTensors Adafactor::moments() const {
  NamedTensors tensors;
  const auto add = [&](const char* kind, size_t i, const torch::Tensor& tensor) {
    if (tensor.defined()) tensors.emplace_back(kind + parameters()[i].first, tensor);
  };
  for (size_t i = 0; i < moments_.size(); ++i) add("exp_avg.", i, moments_[i].exp_avg);
  for (size_t i = 0; i < moments_.size(); ++i) add("exp_avg_sq.", i, moments_[i].exp_avg_sq);
  for (size_t i = 0; i < moments_.size(); ++i) add("exp_avg_sq_row.", i, moments_[i].exp_avg_sq_row);
  for (size_t i = 0; i < moments_.size(); ++i) add("exp_avg_sq_col.", i, moments_[i].exp_avg_sq_col);
  return tensors;
}

}  // namespace contrastive::optim
