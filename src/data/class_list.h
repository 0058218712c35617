#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "contrastive/data/classification_set.h"

namespace contrastive::data::detail {

/// What a names file and an ids file say together.
struct ClassList {
  std::vector<std::string> names;  ///< empty: there is no names file
  std::vector<std::string> ids;    ///< of the same order; empty: unknown
  std::filesystem::path file;      ///< of the names, or of the ids if there is none; for messages
};

/// Reads the options' files, or else a names file in one of the `folders`. `known_ids`: the class folders' names,
/// sorted. Throws: DataError.
ClassList read_class_list(const ClassificationSetOptions& options, const std::vector<std::filesystem::path>& folders,
                          const std::vector<std::string>& known_ids = {});

/// zeroshot_classification_templates.txt of the first folder that has it; otherwise empty. Throws: DataError.
std::vector<std::string> find_templates(const std::vector<std::filesystem::path>& folders);

/// The file of that name in the first folder that has one.
std::optional<std::filesystem::path> find_file(const std::vector<std::filesystem::path>& folders, const char* name);

/// A number in decimal digits without leading zeros, or nothing.
std::optional<size_t> whole_number(std::string_view text);

/// Lower-case ASCII letters, '_' as a space, stripped: names that differ in writing only are equal.
std::string comparable_name(std::string_view name);

}  // namespace contrastive::data::detail
