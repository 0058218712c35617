#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "contrastive/data/retrieval_set.h"

namespace contrastive::data::detail {

/// An image of a captions file with the places where it may lie, relative to the images' folder, likeliest first.
struct CaptionedImage {
  std::vector<std::string> paths;
  std::vector<std::string> captions;  ///< stripped, none empty, at least one
};

/// Reads a captions file of any kind that open_retrieval_set() knows. Throws: ConfigError, DataError.
std::vector<CaptionedImage> read_captions_file(const std::filesystem::path& file, const RetrievalSetOptions& options);

/// The captions file in a folder under one of the usual names. Throws: DataError if there is none, or several.
std::filesystem::path find_captions_file(const std::filesystem::path& folder, const std::string& split);

}  // namespace contrastive::data::detail
