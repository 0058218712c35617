#include "models/length_groups.h"

#include <limits>
#include <map>

#include <ATen/ATen.h>

namespace contrastive::models::detail {
namespace {

// What a group costs before its first token: the weights of a tower are read once more.
constexpr int64_t kGroupCost = 512;

}  // namespace

std::vector<LengthGroup> group_by_length(const torch::Tensor& lengths) {
  std::map<int64_t, std::vector<int64_t>> rows_of_length;
  const auto* length = lengths.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < lengths.size(0); ++row) rows_of_length[length[row]].push_back(row);
  const std::vector<std::pair<int64_t, std::vector<int64_t>>> known(rows_of_length.begin(), rows_of_length.end());

  // cost[n]: of the n shortest lengths, the last group of which starts at first[n].
  std::vector<int64_t> cost(known.size() + 1, 0);
  std::vector<size_t> first(known.size() + 1, 0);
  for (size_t end = 1; end <= known.size(); ++end) {
    cost[end] = std::numeric_limits<int64_t>::max();
    int64_t rows = 0;
    for (size_t begin = end; begin-- > 0;) {
      rows += static_cast<int64_t>(known[begin].second.size());
      const auto with_group = cost[begin] + kGroupCost + rows * known[end - 1].first;
      if (with_group >= cost[end]) continue;
      cost[end] = with_group;
      first[end] = begin;
    }
  }
  std::vector<LengthGroup> groups;
  for (size_t end = known.size(); end > 0; end = first[end]) {
    LengthGroup group{.length = known[end - 1].first, .rows = {}};
    for (size_t i = first[end]; i < end; ++i) {
      group.rows.insert(group.rows.end(), known[i].second.begin(), known[i].second.end());
    }
    groups.push_back(std::move(group));
  }
  return groups;
}

}  // namespace contrastive::models::detail
