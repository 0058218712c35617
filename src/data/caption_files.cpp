#include "data/caption_files.h"

#include <algorithm>
#include <map>
#include <set>
#include <unordered_map>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"

#include "data/delimited_file.h"
#include "data/json_file.h"
#include "data/sample_members.h"

namespace contrastive::data::detail {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

/// A part of a JSON file, which knows its place for messages: "images[3].sentences[0].raw".
class JsonPlace {
 public:
  JsonPlace(const fs::path& file, const Json& value, std::string place = "")
      : file_(file), value_(value), place_(std::move(place)) {}

  JsonPlace field(const char* key) const {
    if (!value_.is_object()) fail("an object");
    const auto found = value_.find(key);
    const auto place = place_.empty() ? key : fmt::format("{}.{}", place_, key);
    if (found == value_.end()) throw DataError(fmt::format("[{}] {} is missing", file_.string(), place));
    return {file_, *found, place};
  }

  bool has(const char* key) const { return value_.is_object() && value_.contains(key); }

  /// Calls `visit` with each element.
  template <typename Visit>
  void each(const Visit& visit) const {
    if (!value_.is_array()) fail("a list");
    size_t i = 0;
    for (const auto& element : value_) visit(JsonPlace(file_, element, fmt::format("{}[{}]", place_, i++)));
  }

  const std::string& text() const {
    if (!value_.is_string()) fail("a string");
    return value_.get_ref<const std::string&>();
  }

  int64_t integer() const {
    if (!value_.is_number_integer()) fail("an integer");
    return value_.get<int64_t>();
  }

  bool is_text() const { return value_.is_string(); }

 private:
  [[noreturn]] void fail(const char* expected) const {
    throw_json_type(file_, place_.empty() ? "the file" : place_, expected, value_);
  }

  const fs::path& file_;
  const Json& value_;
  std::string place_;
};

/// Adds a caption unless it is empty.
void add_caption(const std::string& caption, CaptionedImage& image) {
  const auto text = strip(caption);
  if (!text.empty()) image.captions.emplace_back(text);
}

/// "a/b/c.jpg" as itself and as "c.jpg": people unpack archives with and without their folders.
std::vector<std::string> places_of(const std::string& path) {
  std::vector<std::string> places{path};
  const auto name = fs::path(path).filename().string();
  if (name != path) places.push_back(name);
  return places;
}

std::set<std::string> split_names(const std::string& splits) {
  std::set<std::string> names;
  for (size_t begin = 0; begin <= splits.size();) {
    const auto end = std::min(splits.find('+', begin), splits.size());
    names.insert(splits.substr(begin, end - begin));
    begin = end + 1;
  }
  return names;
}

std::vector<CaptionedImage> read_karpathy(const fs::path& file, const JsonPlace& json, const std::string& split) {
  const auto wanted = split_names(split);
  std::set<std::string> there;
  std::vector<CaptionedImage> images;
  json.field("images").each([&](const JsonPlace& entry) {
    const auto& own_split = entry.field("split").text();
    there.insert(own_split);
    if (!wanted.contains(own_split)) return;
    const auto& name = entry.field("filename").text();
    const auto folder = entry.has("filepath") ? entry.field("filepath").text() : std::string();
    CaptionedImage image{places_of(folder.empty() ? name : folder + "/" + name), {}};
    entry.field("sentences").each([&](const JsonPlace& sentence) { add_caption(sentence.field("raw").text(), image); });
    images.push_back(std::move(image));
  });
  for (const auto& name : wanted) {
    if (there.contains(name)) continue;
    throw DataError(fmt::format("[{}] has no images of the split {}; splits here: {}", file.string(), name,
                                fmt::join(there, ", ")));
  }
  return images;
}

/// [{"image": ..., "caption": [...]}, ...]; entries of the same image are joined.
std::vector<CaptionedImage> read_image_list(const JsonPlace& json) {
  std::vector<CaptionedImage> images;
  std::unordered_map<std::string, size_t> place_of;
  json.each([&](const JsonPlace& entry) {
    const auto& name = entry.field("image").text();
    const auto [place, is_new] = place_of.emplace(name, images.size());
    if (is_new) images.push_back({places_of(name), {}});
    auto& image = images[place->second];
    const auto captions = entry.field("caption");
    if (captions.is_text()) return add_caption(captions.text(), image);
    captions.each([&](const JsonPlace& caption) { add_caption(caption.text(), image); });
  });
  return images;
}

/// COCO's own files, whose images and captions are lists of their own.
std::vector<CaptionedImage> read_coco(const fs::path& file, const JsonPlace& json) {
  std::vector<CaptionedImage> images;
  std::unordered_map<int64_t, size_t> place_of;
  json.field("images").each([&](const JsonPlace& entry) {
    const auto id = entry.field("id").integer();
    if (!place_of.emplace(id, images.size()).second) {
      throw DataError(fmt::format("[{}] the image id {} is there twice", file.string(), id));
    }
    images.push_back({places_of(entry.field("file_name").text()), {}});
  });
  std::vector<char> is_annotated(images.size(), 0);
  json.field("annotations").each([&](const JsonPlace& entry) {
    const auto id = entry.field("image_id").integer();
    const auto place = place_of.find(id);
    if (place == place_of.end()) {
      throw DataError(
          fmt::format("[{}] an annotation is for the image id {}, which is not among the images", file.string(), id));
    }
    is_annotated[place->second] = 1;
    add_caption(entry.field("caption").text(), images[place->second]);
  });
  std::vector<CaptionedImage> kept;
  for (size_t i = 0; i < images.size(); ++i) {
    if (is_annotated[i]) kept.push_back(std::move(images[i]));
  }
  return kept;
}

std::vector<CaptionedImage> read_json_captions(const fs::path& file, const std::string& split) {
  const auto content = read_json_file(file);
  const JsonPlace json(file, content);
  if (content.is_array()) return read_image_list(json);
  if (json.has("annotations")) return read_coco(file, json);
  if (json.has("images")) return read_karpathy(file, json, split);
  throw_json_type(file, "the file", "a list of images with captions, or an object with images", content);
}

std::vector<CaptionedImage> read_csv_captions(const fs::path& file, const RetrievalSetOptions& options) {
  const auto rows = read_delimited_file(file, options.separator,
                                        {{options.image_key, kImageColumns, "image_key"},
                                         {options.caption_key, {"caption", "title", "text", "raw"}, "caption_key"}},
                                        /*open_end=*/true);
  std::vector<CaptionedImage> images;
  std::unordered_map<std::string, size_t> place_of;
  for (const auto& row : rows) {
    const auto& name = row.values[0];
    if (name.empty()) {
      throw DataError(fmt::format("[{}] line {}: the image's path is empty", file.string(), row.line));
    }
    const auto [place, is_new] = place_of.emplace(name, images.size());
    if (is_new) images.push_back({places_of(name), {}});
    add_caption(row.values[1], images[place->second]);
  }
  return images;
}

}  // namespace

std::vector<CaptionedImage> read_captions_file(const fs::path& file, const RetrievalSetOptions& options) {
  auto images =
      lower_extension(file) == ".json" ? read_json_captions(file, options.split) : read_csv_captions(file, options);
  if (images.empty()) throw DataError(fmt::format("[{}] holds no image with captions", file.string()));
  for (const auto& image : images) {
    if (image.captions.empty()) {
      throw DataError(fmt::format("[{}] the image {} has no caption", file.string(), image.paths.front()));
    }
  }
  return images;
}

fs::path find_captions_file(const fs::path& folder, const std::string& split) {
  std::vector<std::string> names{"dataset_coco.json",
                                 "dataset_flickr30k.json",
                                 fmt::format("coco_{}_karpathy.json", split),
                                 fmt::format("flickr30k_{}_karpathy.txt", split),
                                 "captions.csv",
                                 "captions.tsv"};
  for (const auto* year : {"2014", "2017"}) {
    const auto official = fmt::format("captions_{}{}.json", split == "test" ? "val" : split, year);
    names.push_back(official);
    names.push_back("annotations/" + official);
  }
  std::vector<std::string> found;
  for (const auto& name : names) {
    if (is_file(folder / name)) found.push_back(name);
  }
  if (found.size() == 1) return folder / found.front();
  if (found.empty()) {
    throw DataError(fmt::format("[{}] there is no data set: expected .tar files, or one of {}", folder.string(),
                                fmt::join(names, ", ")));
  }
  throw DataError(
      fmt::format("[{}] there are several captions files: {}; name one", folder.string(), fmt::join(found, ", ")));
}

}  // namespace contrastive::data::detail
