#include "tests/support/tensors.h"

#include <cstring>
#include <stdexcept>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

namespace contrastive::test {
namespace {

std::string index_text(int64_t flat, at::IntArrayRef sizes) {
  std::vector<int64_t> index(sizes.size());
  for (size_t i = sizes.size(); i-- > 0;) {
    index[i] = flat % sizes[i];
    flat /= sizes[i];
  }
  return fmt::format("[{}]", fmt::join(index, ", "));
}

const ConfigNode& child(const ConfigNode& map, const std::string& key) {
  const auto* node = map.find(key);
  if (node == nullptr) throw std::runtime_error("the fixture has no entry " + key);
  return *node;
}

}  // namespace

::testing::AssertionResult tensors_near(const std::string& name, const torch::Tensor& actual,
                                        const torch::Tensor& expected, Tolerance tolerance) {
  if (actual.sizes() != expected.sizes()) {
    return ::testing::AssertionFailure() << name << ": shape [" << fmt::format("{}", fmt::join(actual.sizes(), ", "))
                                         << "], expected [" << fmt::format("{}", fmt::join(expected.sizes(), ", "))
                                         << "]";
  }
  if (actual.numel() == 0) return ::testing::AssertionSuccess();
  const auto a = actual.detach().to(at::kDouble).flatten(), b = expected.detach().to(at::kDouble).flatten();
  if (!a.isfinite().all().item<bool>())
    return ::testing::AssertionFailure() << name << ": has values that are not finite";
  const auto error = (a - b).abs();
  const auto worst = error.argmax().item<int64_t>();
  const auto largest = error[worst].item<double>();
  const auto allowed = tolerance.absolute + tolerance.relative * b.abs().max().item<double>();
  largest_difference().add({name, largest, allowed});
  if (largest <= allowed) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << fmt::format(
             "{}{}: {:.9g}, expected {:.9g}; error {:.3g} is {:.2f} times the tolerance {:.3g}", name,
             index_text(worst, actual.sizes()), a[worst].item<double>(), b[worst].item<double>(), largest,
             largest / allowed, allowed);
}

::testing::AssertionResult tensors_equal(const std::string& name, const torch::Tensor& actual,
                                         const torch::Tensor& expected) {
  if (actual.scalar_type() != expected.scalar_type()) {
    return ::testing::AssertionFailure() << name << ": dtype " << actual.scalar_type() << ", expected "
                                         << expected.scalar_type();
  }
  return tensors_near(name, actual, expected, {});
}

bool same_bytes(const torch::Tensor& a, const torch::Tensor& b) {
  if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes()) return false;
  const auto x = a.contiguous(), y = b.contiguous();
  return x.numel() == 0 || std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

torch::Tensor random_normal(at::IntArrayRef sizes, uint64_t seed, torch::ScalarType dtype) {
  auto generator = at::detail::createCPUGenerator(seed);
  return at::empty(sizes, dtype).normal_(0, 1, generator);
}

torch::Tensor indices(std::vector<int64_t> values) {
  return at::tensor(at::IntArrayRef(values), at::kLong);
}

std::map<std::string, torch::Tensor> by_name(const NamedTensors& tensors, const std::string& prefix) {
  std::map<std::string, torch::Tensor> result;
  for (const auto& [name, tensor] : tensors) {
    if (name.starts_with(prefix)) result.emplace(name.substr(prefix.size()), tensor);
  }
  return result;
}

ConfigNode meta_of(const SafetensorsFile& file) {
  return parse_config(file.metadata().at("meta"), "meta");
}

double number_at(const ConfigNode& map, const std::string& key) {
  return std::stod(child(map, key).scalar);
}

std::vector<double> numbers_at(const ConfigNode& map, const std::string& key) {
  std::vector<double> values;
  for (const auto& item : child(map, key).items) values.push_back(std::stod(item.scalar));
  return values;
}

std::vector<std::string> strings_at(const ConfigNode& map, const std::string& key) {
  std::vector<std::string> values;
  for (const auto& item : child(map, key).items) values.push_back(item.scalar);
  return values;
}

}  // namespace contrastive::test
