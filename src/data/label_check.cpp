#include "data/label_check.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <unordered_set>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/data/webdataset_source.h"

#include "data/class_list.h"
#include "data/sample_members.h"

namespace contrastive::data::detail {
namespace {

constexpr int64_t kMaxCompared = 256;
constexpr int64_t kMaxMemberBytes = 1 << 16;

/// Small text members, read as if they were images.
class TextMembers {
 public:
  TextMembers(const ShardIndex& index, const char* extension)
      : extension_(extension), source_(index, options(extension)) {}

  static bool is_in(const ShardIndex& index, const char* extension) {
    for (int64_t i = 0; i < index.size(); ++i) {
      if (index.sample(i).find(extension)) return true;
    }
    return false;
  }

  /// Nothing if the sample has none, or a large one.
  std::optional<std::string> read(int64_t i) const {
    const auto member = source_.index().sample(i).find(extension_);
    if (!member || member->length > kMaxMemberBytes) return std::nullopt;
    Sample sample;
    RandomStream random(/*seed=*/0, RandomPurpose::caption, {i});
    source_.read(i, random, sample);
    const std::string content(sample.encoded.begin(), sample.encoded.end());
    return std::string(strip(content));
  }

  std::string describe(int64_t i) const { return source_.describe(i); }

 private:
  static WebdatasetOptions options(const char* extension) {
    WebdatasetOptions options;
    options.image_keys = extension;
    options.need_caption = false;
    return options;
  }

  const char* extension_;
  WebdatasetSource source_;
};

std::optional<int64_t> integer(const std::optional<std::string>& text) {
  int64_t value = 0;
  if (!text) return std::nullopt;
  const auto* last = text->data() + text->size();
  const auto [end, error] = std::from_chars(text->data(), last, value);
  return error == std::errc() && end == last ? std::optional(value) : std::nullopt;
}

void check_ranges(const TextMembers& labels, const ShardIndex& index, const std::string& names_file, int64_t count) {
  for (int64_t i = 0; i < index.size(); ++i) {
    const auto label = integer(labels.read(i));
    if (!label || (*label >= 0 && *label < count)) continue;
    throw DataError(fmt::format("{}: the label is {}, but [{}] has {} class names: expected [0, {})",
                                labels.describe(i), *label, names_file, count, count));
  }
}

void check_order(const TextMembers& labels, const ShardIndex& index, const std::vector<std::string>& names,
                 const std::string& names_file) {
  const TextMembers texts(index, "txt");
  std::unordered_set<std::string> known;
  for (const auto& name : names) known.insert(comparable_name(name));
  const auto compared = std::min(kMaxCompared, index.size());
  for (int64_t k = 0; k < compared; ++k) {
    const auto i = compared == 1 ? 0 : k * (index.size() - 1) / (compared - 1);
    const auto text = texts.read(i);
    const auto label = integer(labels.read(i));
    if (!text || !label || !known.contains(comparable_name(*text))) continue;
    const auto& name = names[static_cast<size_t>(*label)];
    if (comparable_name(name) == comparable_name(*text)) continue;
    throw DataError(
        fmt::format("{}: the label is {}, which is \"{}\" in [{}], but the sample's .txt says \"{}\", another class: "
                    "the names have "
                    "another order than the labels",
                    labels.describe(i), *label, name, names_file, *text));
  }
}

}  // namespace

void check_labels(const ShardIndex& index, const std::vector<std::string>& class_names, const std::string& names_file) {
  if (!TextMembers::is_in(index, "cls")) return;
  const TextMembers labels(index, "cls");
  check_ranges(labels, index, names_file, static_cast<int64_t>(class_names.size()));
  if (TextMembers::is_in(index, "txt")) check_order(labels, index, class_names, names_file);
}

}  // namespace contrastive::data::detail
