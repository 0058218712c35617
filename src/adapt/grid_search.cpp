#include "contrastive/adapt/grid_search.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/random.h"

#include "adapt/interval_sweep.h"

namespace contrastive::adapt {
namespace {

/// Where the parameters of each role stand, and what they are searched over.
struct Roles {
  std::vector<int64_t> order;  ///< positions of shape parameters, then the outer one's, then the inner one's
  std::vector<double> outer{0};
  std::vector<double> inner{0};
};

Roles roles_of(const std::vector<Parameter>& parameters) {
  Roles roles;
  for (const auto role : {ParameterRole::shape, ParameterRole::outer, ParameterRole::inner}) {
    for (size_t i = 0; i < parameters.size(); ++i) {
      if (parameters[i].role != role) continue;
      roles.order.push_back(static_cast<int64_t>(i));
      if (role == ParameterRole::outer) roles.outer = parameters[i].grid;
      if (role == ParameterRole::inner) roles.inner = parameters[i].grid;
    }
  }
  return roles;
}

int64_t shape_points(const std::vector<Parameter>& parameters) {
  int64_t points = 1;
  for (const auto& parameter : parameters) {
    if (parameter.role == ParameterRole::shape) points *= static_cast<int64_t>(parameter.grid.size());
  }
  return points;
}

/// From [shape points, outer values, inner values] to a dimension a parameter, in their order.
torch::Tensor in_parameter_order(const torch::Tensor& counts, const std::vector<Parameter>& parameters,
                                 const Roles& roles) {
  std::vector<int64_t> sizes;
  std::vector<int64_t> place(parameters.size());
  for (size_t i = 0; i < roles.order.size(); ++i) {
    const auto parameter = static_cast<size_t>(roles.order[i]);
    sizes.push_back(static_cast<int64_t>(parameters[parameter].grid.size()));
    place[parameter] = static_cast<int64_t>(i);
  }
  return counts.reshape(sizes).permute(place).contiguous();
}

void check_labels(const torch::Tensor& labels, int64_t num_samples, int64_t num_classes) {
  TORCH_CHECK(labels.dim() == 1 && labels.scalar_type() == at::kLong && labels.size(0) == num_samples,
              "[search_grid] labels must be [", num_samples, "] int64, but are ", labels.sizes());
  const auto wrong = (labels.lt(0) | labels.ge(num_classes)).nonzero();
  if (wrong.numel() == 0) return;
  const auto row = wrong[0].item<int64_t>();
  throw DataError(fmt::format("[search_grid] labels must be in [0, {}), but that of image {} is {}", num_classes, row,
                              labels[row].item<int64_t>()));
}

ParameterValues values_at(const GridAccuracy& accuracy, int64_t flat) {
  ParameterValues values(accuracy.parameters.size());
  for (size_t i = values.size(); i-- > 0;) {
    const auto& grid = accuracy.parameters[i].grid;
    const auto size = static_cast<int64_t>(grid.size());
    values[i] = grid[static_cast<size_t>(flat % size)];
    flat /= size;
  }
  return values;
}

/// argmax may return any of several equal ones.
int64_t first_highest(const torch::Tensor& values) {
  return values.flatten().eq(values.max()).nonzero()[0].item<int64_t>();
}

/// The mean over each point and its neighbours along every dimension.
torch::Tensor neighbourhood_means(const torch::Tensor& counts) {
  const auto own = counts.to(at::kDouble);
  auto sums = own.clone();
  auto numbers = at::ones_like(own);
  for (int64_t d = 0; d < own.dim(); ++d) {
    const auto size = own.size(d);
    if (size < 2) continue;
    sums.narrow(d, 1, size - 1) += own.narrow(d, 0, size - 1);
    sums.narrow(d, 0, size - 1) += own.narrow(d, 1, size - 1);
    numbers.narrow(d, 1, size - 1) += 1;
    numbers.narrow(d, 0, size - 1) += 1;
  }
  return sums / numbers;
}

/// The fold of each row: rows of a class are dealt out in an order drawn by the seed.
torch::Tensor deal_folds(const SupportFeatures& support, int64_t folds, int64_t seed) {
  auto fold = at::empty({support.size()}, at::kLong);
  const auto offsets = support.offsets();
  const auto* begin = offsets.const_data_ptr<int64_t>();
  for (int64_t c = 0; c < support.num_classes; ++c) {
    RandomStream random(static_cast<uint64_t>(seed), RandomPurpose::few_shot, {c});
    const auto count = begin[c + 1] - begin[c];
    const Permutation order(random.next(), count);
    for (int64_t i = 0; i < count; ++i) fold.mutable_data_ptr<int64_t>()[begin[c] + order(i)] = i % folds;
  }
  return fold;
}

constexpr std::array<std::pair<Protocol, const char*>, 4> kProtocols{{{Protocol::fixed, "fixed"},
                                                                      {Protocol::support_cv, "support-cv"},
                                                                      {Protocol::val, "val"},
                                                                      {Protocol::test_oracle, "test-oracle"}}};

}  // namespace

ParameterValues GridAccuracy::best() const {
  return values_at(*this, first_highest(correct));
}

int64_t GridAccuracy::best_correct() const {
  return correct.max().item<int64_t>();
}

ParameterValues GridAccuracy::plateau_centre() const {
  const auto means = neighbourhood_means(correct).masked_fill(correct.ne(correct.max()), -1);
  return values_at(*this, first_highest(means));
}

std::vector<GridAccuracy::Range> GridAccuracy::sensitivity() const {
  std::vector<Range> ranges;
  auto flat = first_highest(correct);
  std::vector<int64_t> point(parameters.size());
  for (size_t i = point.size(); i-- > 0;) {
    point[i] = flat % correct.size(static_cast<int64_t>(i));
    flat /= correct.size(static_cast<int64_t>(i));
  }
  for (size_t varied = 0; varied < parameters.size(); ++varied) {
    auto line = correct;
    for (size_t i = parameters.size(); i-- > 0;) {
      if (i != varied) line = line.select(static_cast<int64_t>(i), point[i]);
    }
    const auto total = static_cast<double>(std::max<int64_t>(num_samples, 1));
    ranges.push_back({static_cast<double>(line.min().item<int64_t>()) / total,
                      static_cast<double>(line.max().item<int64_t>()) / total});
  }
  return ranges;
}

void GridAccuracy::add(const GridAccuracy& other) {
  const bool is_same =
      std::equal(parameters.begin(), parameters.end(), other.parameters.begin(), other.parameters.end(),
                 [](const auto& a, const auto& b) { return a.name == b.name && a.grid == b.grid; });
  TORCH_CHECK(is_same, "[grid_accuracy] counts of different grids can't be added");
  correct = correct + other.correct;
  num_samples += other.num_samples;
}

GridAccuracy search_grid(const Adapter& adapter, const QueryFeatures& queries, const torch::Tensor& labels,
                         const distributed::ProcessGroup& group) {
  GridAccuracy result;
  result.parameters = adapter.parameters();
  const auto own_labels = labels.cpu().contiguous();
  check_labels(own_labels, queries.size(), adapter.num_classes());
  const auto roles = roles_of(result.parameters);
  auto counts = at::zeros({shape_points(result.parameters), static_cast<int64_t>(roles.outer.size()),
                           static_cast<int64_t>(roles.inner.size())},
                          at::kLong);
  adapter.visit_terms(queries, [&](int64_t first_row, int64_t point, const ScoreTerms& terms) {
    ScoreTerms here{terms.base.cpu(), terms.outer.defined() ? terms.outer.cpu() : terms.outer,
                    terms.inner.defined() ? terms.inner.cpu() : terms.inner};
    auto table = counts[point];
    detail::count_correct(here, own_labels.slice(0, first_row, first_row + here.base.size(0)), roles.outer, roles.inner,
                          table);
  });
  auto num_samples = at::full({1}, queries.size(), at::kLong);
  group.all_reduce(counts);
  group.all_reduce(num_samples);
  result.correct = in_parameter_order(counts, result.parameters, roles);
  result.num_samples = num_samples.item<int64_t>();
  return result;
}

std::string protocol_name(Protocol protocol) {
  for (const auto& [each, name] : kProtocols) {
    if (each == protocol) return name;
  }
  return "";
}

Protocol parse_protocol(const std::string& name) {
  for (const auto& [protocol, known] : kProtocols) {
    if (name == known) return protocol;
  }
  throw ConfigError(fmt::format("there is no protocol \"{}\": must be fixed, support-cv, val or test-oracle", name));
}

GridAccuracy cross_validate(const std::function<std::unique_ptr<Adapter>()>& make, const SupportFeatures& support,
                            const TextClassifier& classifier, const SupportCvOptions& options) {
  support.check();
  if (options.folds < 2) {
    throw ConfigError(fmt::format("[support-cv] folds must be at least 2, but is {}", options.folds));
  }
  const auto counts = support.counts();
  const auto fewest = counts.min().item<int64_t>();
  if (fewest < 2) {
    const auto label = counts.argmin().item<int64_t>();
    const auto name = classifier.class_names.empty() ? fmt::format("{}", label)
                                                     : classifier.class_names.at(static_cast<size_t>(label));
    throw DataError(fmt::format(
        "[support-cv] class \"{}\" has a single row, so that none can be held out: take the protocol fixed", name));
  }
  const auto folds = std::min(options.folds, fewest);
  const auto fold = deal_folds(support, folds, options.seed);
  std::optional<GridAccuracy> total;
  for (int64_t held_out = 0; held_out < folds; ++held_out) {
    const auto adapter = make();
    adapter->fit(support.rows(fold.ne(held_out).nonzero().flatten()), classifier);
    const auto tested = support.rows(fold.eq(held_out).nonzero().flatten());
    auto accuracy = search_grid(*adapter, {tested.keys, {}}, tested.labels);
    if (total) {
      total->add(accuracy);
    } else {
      total = std::move(accuracy);
    }
  }
  return *total;
}

}  // namespace contrastive::adapt
