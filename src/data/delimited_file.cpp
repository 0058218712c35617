#include "data/delimited_file.h"

#include <algorithm>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"

#include "data/data_file.h"
#include "data/sample_members.h"

namespace contrastive::data::detail {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxFileBytes = int64_t{2} << 30;

char separator_of(const fs::path& file, std::string_view content, const std::string& option) {
  if (option == "tab" || option == "\\t") return '\t';
  if (option.size() == 1 && option[0] != '"' && option[0] != '\n' && option[0] != '\r') return option[0];
  if (!option.empty()) {
    throw ConfigError(fmt::format("separator: expected one character or tab, but is \"{}\"", option));
  }
  if (lower_extension(file) == ".tsv") return '\t';
  // open_clip writes .csv files with tabs.
  const auto header = content.substr(0, content.find('\n'));
  for (const char candidate : {',', '\t', '|', ';'}) {
    if (header.find(candidate) != std::string_view::npos) return candidate;
  }
  return ',';
}

bool is_image_name(const fs::path& file) {
  constexpr std::string_view kExtensions[] = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"};
  return std::find(std::begin(kExtensions), std::end(kExtensions), lower_extension(file)) != std::end(kExtensions);
}

/// Columns of a file whose last one may hold the separator.
struct OpenEnd {
  size_t last = 0;
  size_t image = 0;  ///< where other lines have the name of an image
};

/// Reads the text record by record.
class RecordReader {
 public:
  RecordReader(const fs::path& file, std::string_view text, char separator)
      : file_(file), text_(text), separator_(separator) {}

  /// The next record that is not an empty line, or nothing. The last value of an open end takes the rest
  /// of its line if it is not well quoted.
  std::optional<std::vector<std::string>> next(const std::optional<OpenEnd>& end = std::nullopt) {
    while (at_ < text_.size() && (text_[at_] == '\n' || text_[at_] == '\r')) {
      line_ += text_[at_] == '\n';
      ++at_;
    }
    if (at_ >= text_.size()) return std::nullopt;
    record_line_ = line_;
    std::vector<std::string> values;
    do {
      values.push_back(value(end && values.size() == end->last ? &*end : nullptr));
    } while (take_separator());
    take_line_end();
    return values;
  }

  int64_t record_line() const { return record_line_; }

 private:
  bool at_end(size_t at) const { return at >= text_.size() || text_[at] == '\n' || text_.substr(at, 2) == "\r\n"; }

  bool take_separator() {
    if (at_ >= text_.size() || text_[at_] != separator_) return false;
    ++at_;
    return true;
  }

  void take_line_end() {
    at_ = std::min(text_.find('\n', at_), text_.size());
    if (at_ == text_.size()) return;
    ++at_;
    ++line_;
  }

  /// `open`: nothing unless the value is the last one of an open end.
  std::string value(const OpenEnd* open) {
    const auto begin = at_;
    const auto line = line_;
    skip_blanks();
    if (at_ < text_.size() && text_[at_] == '"') {
      if (auto quoted = quoted_value(open, /*is_strict=*/!open && at_ == begin)) return std::move(*quoted);
    }
    at_ = begin;
    line_ = line;
    while (!at_end(at_) && (open || text_[at_] != separator_)) ++at_;
    return std::string(strip(text_.substr(begin, at_ - begin)));
  }

  void skip_blanks() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t') && text_[at_] != separator_) ++at_;
  }

  /// Whether the line at that place has an image's name where it belongs.
  bool is_row(size_t at, size_t image) const {
    auto line = text_.substr(at, text_.find('\n', at) - at);
    for (size_t i = 0; i < image; ++i) line.remove_prefix(std::min(line.find(separator_), line.size() - 1) + 1);
    const auto end = line.find(separator_);
    auto name = strip(line.substr(0, end));
    if (name.size() > 1 && name.starts_with('"') && name.ends_with('"')) name = name.substr(1, name.size() - 2);
    return end != std::string_view::npos && is_image_name(name);
  }

  /// Nothing if it is not well quoted, which is an error if `is_strict`.
  std::optional<std::string> quoted_value(const OpenEnd* open, bool is_strict) {
    std::string value;
    for (++at_; at_ < text_.size(); ++at_) {
      if (text_[at_] == '"') {
        if (at_ + 1 >= text_.size() || text_[at_ + 1] != '"') break;
        ++at_;
      }
      if (open && text_[at_] == '\n' && is_row(at_ + 1, open->image)) return std::nullopt;
      line_ += text_[at_] == '\n';
      value += text_[at_];
    }
    const bool is_closed = at_ < text_.size();
    if (is_closed) ++at_;
    if (is_closed && (at_end(at_) || (!open && text_[at_] == separator_))) return std::string(strip(value));
    if (!is_strict) return std::nullopt;
    throw DataError(fmt::format("[{}] line {}: {}", file_.string(), record_line_,
                                is_closed ? "text follows a closing quote" : "a quote is not closed"));
  }

  const fs::path& file_;
  std::string_view text_;
  char separator_;
  size_t at_ = 0;
  int64_t line_ = 1;
  int64_t record_line_ = 1;
};

/// Where a wanted column is in the header; nothing if it may be missing and is.
std::optional<size_t> find_column(const fs::path& file, const std::vector<std::string>& header,
                                  const WantedColumn& column) {
  const auto position = [&](std::string_view name) -> std::optional<size_t> {
    const auto found = std::find(header.begin(), header.end(), name);
    if (found == header.end()) return std::nullopt;
    return static_cast<size_t>(found - header.begin());
  };
  if (!column.chosen.empty()) {
    if (const auto found = position(column.chosen)) return found;
    throw DataError(fmt::format("[{}] has no column \"{}\" ({}); its columns are: {}", file.string(), column.chosen,
                                column.option, fmt::join(header, ", ")));
  }
  for (const auto name : column.usual) {
    if (const auto found = position(name)) return found;
  }
  if (!column.is_needed) return std::nullopt;
  throw DataError(fmt::format("[{}] has none of the columns {}; choose one of its columns by {}: {}", file.string(),
                              fmt::join(column.usual, ", "), column.option, fmt::join(header, ", ")));
}

}  // namespace

std::vector<DelimitedRow> read_delimited_file(const fs::path& file, const std::string& separator,
                                              const std::vector<WantedColumn>& columns, bool open_end) {
  const auto content = read_utf8_file(file, kMaxFileBytes);
  RecordReader reader(file, content, separator_of(file, content, separator));
  const auto header = reader.next();
  if (!header) throw DataError(fmt::format("[{}] is empty; expected a header line", file.string()));
  std::vector<std::optional<size_t>> places;
  for (const auto& column : columns) places.push_back(find_column(file, *header, column));
  std::optional<OpenEnd> end;
  if (open_end && places.back() == header->size() - 1) end = OpenEnd{*places.back(), places.front().value_or(0)};

  std::vector<DelimitedRow> rows;
  while (auto values = reader.next(end)) {
    if (values->size() != header->size()) {
      throw DataError(fmt::format("[{}] line {}: expected {} values as in the header, but found {}", file.string(),
                                  reader.record_line(), header->size(), values->size()));
    }
    DelimitedRow row{{}, reader.record_line()};
    for (const auto& place : places) row.values.push_back(place ? std::move((*values)[*place]) : std::string());
    rows.push_back(std::move(row));
  }
  if (rows.empty()) throw DataError(fmt::format("[{}] has a header line only", file.string()));
  return rows;
}

}  // namespace contrastive::data::detail
