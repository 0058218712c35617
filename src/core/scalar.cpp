#include "core/scalar.h"

#include <charconv>
#include <cmath>

#include <fmt/format.h>

namespace contrastive::detail {
namespace {

template <typename Number>
std::optional<Number> parse_all(const std::string& text) {
  const char* begin = text.data();
  const char* end = begin + text.size();
  if (text.size() > 1 && *begin == '+' && begin[1] != '-') ++begin;
  Number value{};
  const auto [stop, error] = std::from_chars(begin, end, value);
  if (error != std::errc() || stop != end || begin == end) return std::nullopt;
  return value;
}

}  // namespace

bool is_null(const std::string& text) {
  return text.empty() || text == "null" || text == "~" || text == "Null" || text == "NULL";
}

std::optional<bool> parse_bool(const std::string& text) {
  if (text == "true" || text == "True" || text == "TRUE") return true;
  if (text == "false" || text == "False" || text == "FALSE") return false;
  return std::nullopt;
}

std::optional<int64_t> parse_integer(const std::string& text) {
  return parse_all<int64_t>(text);
}

std::optional<double> parse_real(const std::string& text) {
  const auto value = parse_all<double>(text);
  return value && std::isfinite(*value) ? value : std::nullopt;
}

std::string print_real(double value) {
  auto text = fmt::format("{}", value);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}

}  // namespace contrastive::detail
