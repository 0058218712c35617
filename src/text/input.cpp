#include "text/input.h"

#include <algorithm>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"

#include "text/unicode.h"

namespace contrastive::text {

std::string excerpt(std::string_view text) {
  constexpr size_t kLongest = 40;
  const auto shown = encode_utf8(decode_utf8(text.substr(0, kLongest)));
  return text.size() > kLongest ? shown + "..." : shown;
}

std::string read_data_file(const std::filesystem::path& file, int64_t max_bytes) {
  try {
    return read_text_file(file, max_bytes);
  } catch (const Error& error) {
    throw DataError(error.what());
  }
}

size_t fill_row(const std::vector<int32_t>& ids, int32_t padding, std::string_view text, bool truncate,
                std::span<int32_t> row) {
  if (ids.size() > row.size() && !truncate) {
    throw DataError(fmt::format("[tokenize] text \"{}\" must have at most {} ids with start and end, but has {}",
                                excerpt(text), row.size(), ids.size()));
  }
  const size_t length = std::min(ids.size(), row.size());
  std::copy_n(ids.begin(), length, row.begin());
  std::fill(row.begin() + static_cast<std::ptrdiff_t>(length), row.end(), padding);
  return length;
}

}  // namespace contrastive::text
