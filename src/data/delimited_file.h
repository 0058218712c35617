#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace contrastive::data::detail {

/// A CSV or TSV file with the columns that were asked for.
struct DelimitedRow {
  std::vector<std::string> values;  ///< stripped, in the order of the wanted columns
  int64_t line = 0;                 ///< counted from 1
};

/// A column that a file may have: the name that was chosen, or "" and the usual ones, and what messages call it.
struct WantedColumn {
  std::string chosen;
  std::vector<std::string_view> usual;
  const char* option = "";
  bool is_needed = true;  ///< otherwise the value is "" if there is no such column
};

/// Reads a file with a header line and quotes as in RFC 4180, which may follow blanks; empty lines are skipped.
/// `separator`: a character or "tab"; "": a tab for .tsv, else ',', or what a header line without one has of tab, '|'
/// and ';'. With `open_end` an unquoted value of the last column goes on to the line's end if that is the last wanted
/// one, and a quote there doesn't go on to a line that has a value of its own for the first wanted column: the name of
/// an image file. Throws: ConfigError for the separator; DataError that names the file and the line.
std::vector<DelimitedRow> read_delimited_file(const std::filesystem::path& file, const std::string& separator,
                                              const std::vector<WantedColumn>& columns, bool open_end = false);

inline const std::vector<std::string_view> kImageColumns{"image", "filepath", "path", "filename"};

}  // namespace contrastive::data::detail
