#include "models/tensor_set.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include <ATen/ATen.h>
#include <c10/core/ScalarType.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"

namespace contrastive::models::detail {
namespace {

/// What a message lists of many.
std::string listed(const std::vector<std::string>& names) {
  constexpr size_t kMaxListed = 40;
  if (names.size() <= kMaxListed) return fmt::format("{}", fmt::join(names, ", "));
  return fmt::format("{} and {} more", fmt::join(names.begin(), names.begin() + kMaxListed, ", "),
                     names.size() - kMaxListed);
}

}  // namespace

TensorSet::TensorSet(std::string format, std::vector<LazyTensor> tensors) : format_(std::move(format)) {
  for (auto& tensor : tensors) {
    const auto name = tensor.name;
    if (!tensors_.emplace(name, std::move(tensor)).second) fail(fmt::format("two tensors are named {}", name));
  }
}

bool TensorSet::has_prefix(std::string_view prefix) const {
  const auto found = tensors_.lower_bound(prefix);
  return found != tensors_.end() && found->first.starts_with(prefix);
}

std::string TensorSet::first_of(const std::string& place, const std::vector<std::string>& names) const {
  const auto found =
      std::find_if(names.begin(), names.end(), [&](const auto& name) { return has_prefix(place + name); });
  return place + (found != names.end() ? *found : names.front());
}

int64_t TensorSet::count(const std::string& prefix, const std::string& suffix) const {
  int64_t count = 0;
  while (has_prefix(fmt::format("{}{}{}", prefix, count, suffix))) ++count;
  return count;
}

int64_t TensorSet::size(const std::string& name, size_t dim, size_t num_dims) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) fail(fmt::format("its sizes can't be told: there is no {}", name));
  const auto& shape = found->second.shape;
  const bool is_empty = std::any_of(shape.begin(), shape.end(), [](int64_t size) { return size < 1; });
  if (shape.size() != num_dims || is_empty) {
    fail(fmt::format("its sizes can't be told: {} is {}, expected {} dimensions", name, shape_text(shape), num_dims));
  }
  return shape[dim];
}

LazyTensor TensorSet::take(const std::string& name, const std::vector<int64_t>& shape) {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    missing_.push_back(fmt::format("{} {}", name, shape_text(shape)));
    return {name, at::kFloat, shape, {}};
  }
  auto tensor = std::move(found->second);
  tensors_.erase(found);
  if (!c10::isFloatingType(tensor.dtype)) {
    misshaped_.push_back(fmt::format("{} is of dtype {}", name, c10::toString(tensor.dtype)));
  } else if (tensor.shape != shape) {
    misshaped_.push_back(fmt::format("{} is {}, expected {}", name, shape_text(tensor.shape), shape_text(shape)));
  } else {
    return tensor;
  }
  return {name, at::kFloat, shape, {}};
}

void TensorSet::drop(std::string_view prefix) {
  auto found = tensors_.lower_bound(prefix);
  while (found != tensors_.end() && found->first.starts_with(prefix)) found = tensors_.erase(found);
}

void TensorSet::finish() const {
  std::vector<std::string> problems, unknown;
  for (const auto& [name, tensor] : tensors_) unknown.push_back(fmt::format("{} {}", name, shape_text(tensor.shape)));
  if (!missing_.empty()) problems.push_back(fmt::format("missing: {}", listed(missing_)));
  if (!unknown.empty()) problems.push_back(fmt::format("not known: {}", listed(unknown)));
  if (!misshaped_.empty()) problems.push_back(fmt::format("of another shape or dtype: {}", listed(misshaped_)));
  if (!problems.empty()) fail(fmt::format("{}", fmt::join(problems, "; ")));
}

void TensorSet::fail(const std::string& message) const {
  throw CheckpointError(fmt::format("[{}] {}", format_, message));
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

LazyTensor renamed(LazyTensor tensor, std::string name) {
  tensor.name = std::move(name);
  return tensor;
}

LazyTensor permuted(LazyTensor tensor, const std::vector<int64_t>& order) {
  std::vector<int64_t> shape;
  for (const auto dim : order) shape.push_back(tensor.shape.at(static_cast<size_t>(dim)));
  return {tensor.name, tensor.dtype, shape, [load = tensor.load, order] { return load().permute(order); }};
}

LazyTensor reshaped(LazyTensor tensor, std::vector<int64_t> shape) {
  return {tensor.name, tensor.dtype, shape, [load = tensor.load, shape] { return load().reshape(shape); }};
}

LazyTensor concatenated(std::string name, const std::vector<LazyTensor>& parts) {
  auto shape = parts.at(0).shape;
  shape.at(0) = 0;
  auto dtype = parts[0].dtype;
  for (const auto& part : parts) {
    shape[0] += part.shape.at(0);
    dtype = c10::promoteTypes(dtype, part.dtype);
  }
  return {std::move(name), dtype, shape, [parts, dtype] {
            std::vector<torch::Tensor> loaded;
            for (const auto& part : parts) loaded.push_back(part.load().to(dtype));
            return at::cat(loaded);
          }};
}

LazyTensor added(LazyTensor a, LazyTensor b) {
  const auto dtype = c10::promoteTypes(a.dtype, b.dtype);
  return {a.name, dtype, a.shape, [a = a.load, b = b.load, dtype] { return a().to(dtype) + b().to(dtype); }};
}

double mlp_ratio_of(int64_t width, int64_t hidden) {
  auto ratio = static_cast<double>(hidden) / static_cast<double>(width);
  while (static_cast<int64_t>(static_cast<double>(width) * ratio) < hidden) {
    ratio = std::nextafter(ratio, std::numeric_limits<double>::infinity());
  }
  return ratio;
}

int64_t square_side(int64_t count) {
  const auto side = static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(std::max<int64_t>(count, 0)))));
  return side * side == count ? side : 0;
}

}  // namespace contrastive::models::detail
