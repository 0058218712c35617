#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace contrastive::detail {

/// YAML 1.2's core schema: what an unquoted scalar means.
bool is_null(const std::string& text);
std::optional<bool> parse_bool(const std::string& text);
std::optional<int64_t> parse_integer(const std::string& text);
/// Finite numbers only, integers included.
std::optional<double> parse_real(const std::string& text);

/// The shortest text that reads back as the same number, always with a '.' or an 'e'.
std::string print_real(double value);

}  // namespace contrastive::detail
