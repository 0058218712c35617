#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "contrastive/core/lazy_tensor.h"

namespace contrastive::models::detail {

/// A tensor that a tower needs.
struct WantedTensor {
  std::string name;
  std::vector<int64_t> shape;
};

/// A file's tensors, of which each is taken or dropped. What is wrong with them is collected, so that one error lists
/// all of it.
class TensorSet {
 public:
  /// `format` begins every message. Throws: CheckpointError if two tensors have one name.
  TensorSet(std::string format, std::vector<LazyTensor> tensors);

  bool has(const std::string& name) const { return tensors_.contains(name); }
  bool has_prefix(std::string_view prefix) const;

  /// The first of several names that something begins with; the first of all if there is none.
  std::string first_of(const std::string& place, const std::vector<std::string>& names) const;

  /// How many of prefix0suffix, prefix1suffix, ... something begins with.
  int64_t count(const std::string& prefix, const std::string& suffix) const;

  /// Throws: CheckpointError if there is no such tensor, it has another number of dimensions, or is empty.
  int64_t size(const std::string& name, size_t dim, size_t num_dims) const;

  /// If it is missing or of another shape, this is remembered and the result can't be loaded.
  LazyTensor take(const std::string& name, const std::vector<int64_t>& shape);

  /// Leaves out what begins with a prefix.
  void drop(std::string_view prefix);

  /// Throws: CheckpointError that lists what was missing, of another shape, or neither taken nor dropped.
  void finish() const;

  [[noreturn]] void fail(const std::string& message) const;

 private:
  std::string format_;
  std::map<std::string, LazyTensor, std::less<>> tensors_;
  std::vector<std::string> missing_;
  std::vector<std::string> misshaped_;
};

std::string shape_text(const std::vector<int64_t>& shape);

LazyTensor renamed(LazyTensor tensor, std::string name);

/// The dimensions in another order.
LazyTensor permuted(LazyTensor tensor, const std::vector<int64_t>& order);

LazyTensor reshaped(LazyTensor tensor, std::vector<int64_t> shape);

/// Along the first dimension, in the widest of the dtypes; all other sizes are equal.
LazyTensor concatenated(std::string name, const std::vector<LazyTensor>& parts);

/// Sum of two of one shape.
LazyTensor added(LazyTensor a, LazyTensor b);

/// A ratio of which hidden = int(width * ratio).
double mlp_ratio_of(int64_t width, int64_t hidden);

/// n of n * n; 0 if it is no square.
int64_t square_side(int64_t count);

}  // namespace contrastive::models::detail
