#pragma once

#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <torch/types.h>

#include "contrastive/core/config_node.h"
#include "contrastive/core/safetensors.h"

#include "tests/support/differences.h"

namespace contrastive::test {

/// What may be between a value and its reference: max|a - b| <= absolute + relative * max|b|, over a whole tensor.
struct Tolerance {
  double absolute = 0;
  double relative = 0;
};

/// Compares two tensors. A failure names the tensor, the place and size of the largest error and the share of the
/// tolerance that it uses. Shapes must be equal, every value finite.
::testing::AssertionResult tensors_near(const std::string& name, const torch::Tensor& actual,
                                        const torch::Tensor& expected, Tolerance tolerance);

/// Equal dtype, shape and values.
::testing::AssertionResult tensors_equal(const std::string& name, const torch::Tensor& actual,
                                         const torch::Tensor& expected);

/// Equal dtype, shape and bytes; also for unsigned tensors of more than 8 bits, which can't be compared.
bool same_bytes(const torch::Tensor& a, const torch::Tensor& b);

/// Values of a normal distribution that depend on the seed only.
torch::Tensor random_normal(at::IntArrayRef sizes, uint64_t seed, torch::ScalarType dtype = torch::kFloat);

/// An int64 vector.
torch::Tensor indices(std::vector<int64_t> values);

/// Tensors by name; those whose name starts with the prefix, without it.
std::map<std::string, torch::Tensor> by_name(const NamedTensors& tensors, const std::string& prefix = "");

/// The "meta" JSON object in a fixture's metadata.
ConfigNode meta_of(const SafetensorsFile& file);

/// The number at a key of a map; fails the test by an exception if there is none.
double number_at(const ConfigNode& map, const std::string& key);

/// A list of numbers at a key of a map.
std::vector<double> numbers_at(const ConfigNode& map, const std::string& key);

/// A list of strings at a key of a map.
std::vector<std::string> strings_at(const ConfigNode& map, const std::string& key);

}  // namespace contrastive::test
