#include "data/data_file.h"

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"

#include "data/sample_members.h"

namespace contrastive::data::detail {

namespace fs = std::filesystem;

std::string read_utf8_file(const fs::path& file, int64_t max_bytes) {
  std::string content;
  try {
    content = read_text_file(file, max_bytes);
  } catch (const Error& error) {
    throw DataError(error.what());
  }
  if (const auto invalid = first_invalid_utf8(content)) {
    throw DataError(fmt::format("[{}] is not UTF-8: wrong byte at {}", file.string(), *invalid));
  }
  constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
  if (content.starts_with(kByteOrderMark)) content.erase(0, kByteOrderMark.size());
  return content;
}

std::vector<std::string> read_list(const fs::path& file, const char* what) {
  const auto content = read_utf8_file(file);
  std::vector<std::string> lines;
  for (const auto line : split_lines(content)) lines.emplace_back(strip(line));
  while (!lines.empty() && lines.back().empty()) lines.pop_back();
  if (lines.empty()) throw DataError(fmt::format("[{}] holds no {}", file.string(), what));
  for (size_t i = 0; i < lines.size(); ++i) {
    if (lines[i].empty()) throw DataError(fmt::format("[{}] line {}: the {} is empty", file.string(), i + 1, what));
  }
  return lines;
}

std::string last_part(const fs::path& path) {
  auto normal = fs::absolute(path).lexically_normal();
  if (!normal.has_filename()) normal = normal.parent_path();
  return normal.filename().string();
}

std::string lower(std::string text) {
  for (auto& c : text) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return text;
}

std::string lower_extension(const fs::path& file) {
  return lower(file.extension().string());
}

bool is_folder(const fs::path& path) {
  std::error_code error;
  return fs::is_directory(path, error);
}

bool is_file(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

}  // namespace contrastive::data::detail
