#include <algorithm>
#include <charconv>
#include <cstdint>
#include <iterator>
#include <string_view>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/distributed/rank_environment.h"

namespace contrastive::distributed {
namespace {

constexpr size_t kMaxHosts = 100'000;
constexpr size_t kMaxDigits = 9;
constexpr size_t kMaxBytes = 1'000'000;
constexpr size_t kMaxNameBytes = 253;  // of a DNS name

using Texts = std::vector<std::string>;

/// Reads a list from left to right; messages quote the whole list.
class NodeListReader {
 public:
  explicit NodeListReader(std::string_view list) : list_(list), rest_(list) {}

  Texts run() {
    if (list_.size() > kMaxBytes) fail(fmt::format("it has {} bytes, at most {} are allowed", list_.size(), kMaxBytes));
    Texts hosts;
    do {
      auto names = read_names();
      check_count(hosts.size() + names.size());
      std::move(names.begin(), names.end(), std::back_inserter(hosts));
    } while (skip(','));
    return hosts;
  }

 private:
  [[noreturn]] void fail(const std::string& reason) const {
    throw ConfigError(fmt::format("SLURM node list \"{}\": {}", list_, reason));
  }

  void check_count(size_t count) const {
    if (count > kMaxHosts) fail(fmt::format("it has {} hosts or more, at most {} are allowed", count, kMaxHosts));
  }

  bool skip(char expected) {
    if (!rest_.starts_with(expected)) return false;
    rest_.remove_prefix(1);
    return true;
  }

  std::string_view read_until(std::string_view ends) {
    const auto text = rest_.substr(0, rest_.find_first_of(ends));
    rest_.remove_prefix(text.size());
    return text;
  }

  /// What stands between two commas of the list; the last bracket counts fastest.
  Texts read_names() {
    Texts names{""};
    for (;;) {
      const auto text = read_until("[],");
      if (names.front().size() + text.size() > kMaxNameBytes) {
        fail(fmt::format("a name has more than {} bytes", kMaxNameBytes));
      }
      for (auto& name : names) name += text;
      if (rest_.starts_with(']')) fail("a ] has no [ before it");
      if (!skip('[')) break;
      names = each_with_each(names, read_bracket());
    }
    if (names.front().empty()) fail("a name is empty");
    return names;
  }

  Texts read_bracket() {
    Texts numbers;
    do {
      append_range(numbers, read_until(",[]"));
    } while (skip(','));
    if (!skip(']')) fail("a [ is not closed");
    return numbers;
  }

  void append_range(Texts& numbers, std::string_view range) const {
    const auto dash = range.find('-');
    const auto first_text = range.substr(0, dash);
    const int64_t first = number(first_text, range);
    const int64_t last = dash == std::string_view::npos ? first : number(range.substr(dash + 1), range);
    if (last < first) fail(fmt::format("the range \"{}\" ends before it begins", range));
    check_count(numbers.size() + static_cast<size_t>(last - first) + 1);
    for (int64_t n = first; n <= last; ++n) numbers.push_back(fmt::format("{:0{}}", n, first_text.size()));
  }

  int64_t number(std::string_view text, std::string_view range) const {
    int64_t value = 0;
    const bool all_digits = text.find_first_not_of("0123456789") == std::string_view::npos;
    if (text.empty() || text.size() > kMaxDigits || !all_digits) {
      fail(fmt::format("\"{}\" in brackets is neither a number nor a range of numbers with at most {} digits", range,
                       kMaxDigits));
    }
    std::from_chars(text.data(), text.data() + text.size(), value);
    return value;
  }

  Texts each_with_each(const Texts& beginnings, const Texts& endings) const {
    check_count(beginnings.size() * endings.size());
    Texts names;
    names.reserve(beginnings.size() * endings.size());
    for (const auto& beginning : beginnings) {
      for (const auto& ending : endings) names.push_back(beginning + ending);
    }
    return names;
  }

  std::string_view list_;
  std::string_view rest_;
};

}  // namespace

std::vector<std::string> expand_node_list(const std::string& list) {
  return NodeListReader(list).run();
}

}  // namespace contrastive::distributed
