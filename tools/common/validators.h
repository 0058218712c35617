#pragma once

#include <charconv>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

namespace contrastive::tools {

/// Checks of options whose messages say what is wanted, where CLI11's show the limits of double.
namespace detail {

template <typename IsGood>
CLI::Validator number_check(const char* name, const char* wanted, const IsGood& is_good) {
  return CLI::Validator(
      [=](const std::string& text) {
        double value = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        const bool is_number = error == std::errc() && end == text.data() + text.size();
        return is_number && is_good(value) ? std::string() : fmt::format("must be {}, but is {}", wanted, text);
      },
      name);
}

}  // namespace detail

inline CLI::Validator positive() {
  return detail::number_check("POSITIVE", "above 0", [](double value) { return value > 0; });
}

inline CLI::Validator non_negative() {
  return detail::number_check("NONNEGATIVE", "at least 0", [](double value) { return value >= 0; });
}

}  // namespace contrastive::tools
