#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace contrastive::text {

/// The beginning of a text as an error message shows it, always valid UTF-8.
std::string excerpt(std::string_view text);

/// The whole content of a file. Throws: DataError if it can't be read or is larger than `max_bytes`.
std::string read_data_file(const std::filesystem::path& file, int64_t max_bytes);

/// Copies ids into a row that they need not fit, fills the rest with `padding`; the number of ids in the row.
/// Throws: DataError naming the text if they don't fit and `truncate` is false.
size_t fill_row(const std::vector<int32_t>& ids, int32_t padding, std::string_view text, bool truncate,
                std::span<int32_t> row);

}  // namespace contrastive::text
