#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "contrastive/core/error.h"
#include "contrastive/data/shard_index.h"
#include "contrastive/data/webdataset_source.h"

namespace contrastive::data::detail {

/// Without the ASCII white space at both ends.
std::string_view strip(std::string_view text);

/// The lines of a text; a line end is "\n" or "\r\n", and one at the very end begins no further line.
std::vector<std::string_view> split_lines(std::string_view text);

/// Offset of the first byte that is not part of well-formed UTF-8, or nothing.
/// Source: The Unicode Standard 15, table 3-7.
std::optional<size_t> first_invalid_utf8(std::string_view text);

/// "jpg;png" as {"jpg", "png"}. Throws: ConfigError naming the option if a key is empty.
std::vector<std::string> parse_keys(const std::string& keys, const char* option);

/// The caption's member is there, but has no caption in it.
class MissingCaption : public DataError {
  using DataError::DataError;
};

/// There is a caption, but no text in it.
class EmptyCaption : public DataError {
  using DataError::DataError;
};

/// The only extension of an integer label.
inline const std::vector<std::string> kLabelKeys{"cls"};

/// The same of the options' kind of label.
const std::vector<std::string>& label_keys(const WebdatasetOptions& options);

/// The options with their lists split.
struct MemberKeys {
  std::vector<std::string> image;
  std::vector<std::string> caption;
  std::vector<std::string> label;
  std::string json_field;  ///< empty: captions are text members
};
/// Throws: ConfigError.
MemberKeys parse_member_keys(const WebdatasetOptions& options);

/// The first member, in the order of the keys, that the sample has.
std::optional<IndexedMember> find_member(const IndexedSample& sample, const std::vector<std::string>& keys);

/// find_member() or a DataError that says what is missing: "no image: expected a member .jpg or .png; the sample has
/// .cls".
IndexedMember require_member(const IndexedSample& sample, const std::vector<std::string>& keys, const char* what);

/// Throws: DataError if the member is larger than `max_bytes`.
void check_length(const IndexedMember& member, int64_t max_bytes);

/// The captions in a member's content, stripped; none is empty. With `json_field` empty the content is text.
/// Throws: MissingCaption, EmptyCaption, or another DataError if the content is malformed.
std::vector<std::string> parse_captions(std::string_view content, const std::string& json_field, bool caption_lines);

/// The integer in a .cls member. Throws: DataError if it is none, negative, or not below `num_labels` (if above 0).
int64_t parse_label(std::string_view content, int64_t num_labels);

/// "jpg", "png" or "webp" by the first bytes of an image file. Throws: DataError if it is none of them.
std::string image_extension(const std::vector<uint8_t>& encoded);

}  // namespace contrastive::data::detail
