#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "contrastive/core/export.h"

namespace contrastive {

/// SHA-256 as 64 lower-case hexadecimal digits.
CONTRASTIVE_API std::string sha256_hex(std::span<const uint8_t> bytes);

/// SHA-256 of a file's content, read in pieces. Throws: Error if the file can't be read.
CONTRASTIVE_API std::string sha256_hex_of_file(const std::filesystem::path& file);

}  // namespace contrastive
