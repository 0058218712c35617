#pragma once

#include <filesystem>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/error.h"

#include "data/data_file.h"

namespace contrastive::data::detail {

/// Parses a file of at most 2 GiB, keys in the file's order. Throws: DataError with the place of the first mistake.
inline nlohmann::ordered_json read_json_file(const std::filesystem::path& file) {
  const auto content = read_utf8_file(file, int64_t{2} << 30);
  try {
    return nlohmann::ordered_json::parse(content);
  } catch (const nlohmann::json::parse_error& error) {
    throw DataError(fmt::format("[{}] is not valid JSON: mistake at byte {}", file.string(), error.byte));
  }
}

/// Throws: DataError that says what was expected of which part of a file, and what it is.
[[noreturn]] inline void throw_json_type(const std::filesystem::path& file, const std::string& where,
                                         const char* expected, const nlohmann::ordered_json& found) {
  throw DataError(fmt::format("[{}] {}: expected {}, but is {}", file.string(), where, expected, found.type_name()));
}

}  // namespace contrastive::data::detail
