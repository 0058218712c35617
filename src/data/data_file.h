#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace contrastive::data::detail {

/// The content of a text file in UTF-8, without a byte order mark. Throws: DataError.
std::string read_utf8_file(const std::filesystem::path& file, int64_t max_bytes = int64_t{64} << 20);

/// The lines of a list, stripped; empty ones at the end don't count. Throws: DataError: none, or an empty line.
std::vector<std::string> read_list(const std::filesystem::path& file, const char* what);

/// A path's last part, also of "pets/" and ".".
std::string last_part(const std::filesystem::path& path);

/// A file name's extension with ASCII letters in lower case: ".json".
std::string lower_extension(const std::filesystem::path& file);

/// The text with letters of ASCII in lower case.
std::string lower(std::string text);

/// As is_directory() and is_regular_file(), false where nothing can be found out.
bool is_folder(const std::filesystem::path& path);
bool is_file(const std::filesystem::path& path);

}  // namespace contrastive::data::detail
