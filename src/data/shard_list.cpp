#include "contrastive/data/shard_list.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include "contrastive/core/error.h"

namespace contrastive::data {
namespace {

constexpr size_t kMaxShards = 1'000'000;
constexpr int kMaxDepth = 16;
constexpr size_t kMaxDigits = 15;

using Texts = std::vector<std::string>;

/// Expands one part of a list; messages quote the part.
class BraceExpander {
 public:
  explicit BraceExpander(std::string_view part) : part_(part) {}

  Texts run() const { return expand(part_, 0); }

 private:
  [[noreturn]] void fail(const std::string& reason) const {
    throw DataError(fmt::format("[shard list] \"{}\": {}", part_, reason));
  }

  Texts expand(std::string_view text, int depth) const {
    if (depth > kMaxDepth) fail(fmt::format("braces are nested more than {} deep", kMaxDepth));
    Texts results{""};
    while (!text.empty()) {
      const auto open = text.find_first_of("{}");
      append_to_each(results, text.substr(0, open));
      if (open == std::string_view::npos) break;
      if (text[open] == '}') fail("a } has no { before it");
      const auto close = matching_brace(text, open);
      multiply(results, alternatives(text.substr(open + 1, close - open - 1), depth));
      text.remove_prefix(close + 1);
    }
    return results;
  }

  size_t matching_brace(std::string_view text, size_t open) const {
    int depth = 0;
    for (size_t i = open; i < text.size(); ++i) {
      if (text[i] == '{') ++depth;
      if (text[i] == '}' && --depth == 0) return i;
    }
    fail("a { is never closed");
  }

  Texts alternatives(std::string_view body, int depth) const {
    const auto choices = split_at_commas(body);
    if (choices.size() == 1) return range(body);
    Texts results;
    for (const auto choice : choices) {
      for (auto& text : expand(choice, depth + 1)) results.push_back(std::move(text));
      check_count(results.size());
    }
    return results;
  }

  static std::vector<std::string_view> split_at_commas(std::string_view body) {
    std::vector<std::string_view> choices;
    int depth = 0;
    size_t begin = 0;
    for (size_t i = 0; i <= body.size(); ++i) {
      if (i < body.size() && body[i] == '{') ++depth;
      if (i < body.size() && body[i] == '}') --depth;
      if (i < body.size() && (body[i] != ',' || depth > 0)) continue;
      choices.push_back(body.substr(begin, i - begin));
      begin = i + 1;
    }
    return choices;
  }

  Texts range(std::string_view body) const {
    std::vector<std::string_view> ends;
    for (auto rest = body;;) {
      const auto dots = rest.find("..");
      ends.push_back(rest.substr(0, dots));
      if (dots == std::string_view::npos) break;
      rest.remove_prefix(dots + 2);
    }
    if (ends.size() != 2 && ends.size() != 3) {
      fail(fmt::format("{{{}}} is neither a range {{first..last}} nor a set {{a,b}}", body));
    }
    const int64_t first = number(ends[0], body);
    const int64_t last = number(ends[1], body);
    const int64_t step = ends.size() == 3 ? std::abs(number(ends[2], body)) : 1;
    if (step == 0) fail(fmt::format("the range {{{}}} has step 0", body));

    const int64_t count = std::abs(last - first) / step + 1;
    check_count(static_cast<size_t>(count));
    const auto width =
        has_leading_zero(ends[0]) || has_leading_zero(ends[1]) ? std::max(ends[0].size(), ends[1].size()) : 0;
    Texts results;
    for (int64_t i = 0; i < count; ++i) {
      results.push_back(fmt::format("{:0{}}", first + (last >= first ? i : -i) * step, width));
    }
    return results;
  }

  int64_t number(std::string_view text, std::string_view body) const {
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (text.empty() || text.size() > kMaxDigits || error != std::errc() || end != text.data() + text.size()) {
      fail(fmt::format("the range {{{}}} needs integers of at most {} digits, but has \"{}\"", body, kMaxDigits, text));
    }
    return value;
  }

  static bool has_leading_zero(std::string_view number) {
    const auto digits = number.substr(number.starts_with('-') ? 1 : 0);
    return digits.size() > 1 && digits[0] == '0';
  }

  static void append_to_each(Texts& results, std::string_view suffix) {
    for (auto& text : results) text += suffix;
  }

  void multiply(Texts& results, const Texts& suffixes) const {
    check_count(results.size() * suffixes.size());
    Texts products;
    products.reserve(results.size() * suffixes.size());
    for (const auto& prefix : results) {
      for (const auto& suffix : suffixes) products.push_back(prefix + suffix);
    }
    results = std::move(products);
  }

  void check_count(size_t count) const {
    if (count > kMaxShards) fail(fmt::format("gives {} shards or more, but at most {} are allowed", count, kMaxShards));
  }

  std::string_view part_;
};

void check_is_local(std::string_view part) {
  if (part.starts_with("pipe:")) {
    throw DataError(fmt::format(
        "[shard list] \"{}\": pipe: runs a command and is not supported; write the shards to files first", part));
  }
  if (part.find("://") != std::string_view::npos) {
    throw DataError(fmt::format("[shard list] \"{}\": only local files can be read, not URLs", part));
  }
}

std::vector<std::string_view> split_list(std::string_view list) {
  std::vector<std::string_view> parts;
  for (;;) {
    const auto separator = list.find("::");
    parts.push_back(list.substr(0, separator));
    if (separator == std::string_view::npos) return parts;
    list.remove_prefix(separator + 2);
  }
}

std::optional<std::string> why_unreadable(const std::filesystem::path& shard) {
  struct stat status {};
  if (::stat(shard.c_str(), &status) != 0) return std::strerror(errno);
  if (S_ISDIR(status.st_mode)) return "is a folder";
  if (!S_ISREG(status.st_mode)) return "is not a regular file";
  if (::access(shard.c_str(), R_OK) != 0) return std::strerror(errno);
  return std::nullopt;
}

}  // namespace

std::vector<std::filesystem::path> expand_shard_list(const std::string& list) {
  if (list.find_first_not_of(" \t\r\n") == std::string::npos) {
    throw DataError("[shard list] is empty; expected something like shards/{00000..00049}.tar");
  }
  std::vector<std::filesystem::path> shards;
  for (const auto part : split_list(list)) {
    if (part.empty()) throw DataError(fmt::format("[shard list] \"{}\": there is nothing beside a \"::\"", list));
    check_is_local(part);
    for (auto& text : BraceExpander(part).run()) {
      if (text.empty()) throw DataError(fmt::format("[shard list] \"{}\": gives an empty file name", part));
      shards.emplace_back(std::move(text));
    }
    if (shards.size() > kMaxShards) {
      throw DataError(fmt::format("[shard list] \"{}\": gives more than {} shards", list, kMaxShards));
    }
  }
  return shards;
}

void require_shards_exist(const std::vector<std::filesystem::path>& shards) {
  constexpr size_t kNamed = 10;
  size_t unreadable = 0;
  std::string names;
  for (const auto& shard : shards) {
    const auto reason = why_unreadable(shard);
    if (!reason || ++unreadable > kNamed) continue;
    names += fmt::format("{}{} ({})", names.empty() ? "" : ", ", shard.string(), *reason);
  }
  if (unreadable == 0) return;
  if (unreadable > kNamed) names += fmt::format(", and {} more", unreadable - kNamed);
  throw DataError(fmt::format("[shard list] {} of {} shards can't be read: {}", unreadable, shards.size(), names));
}

}  // namespace contrastive::data
