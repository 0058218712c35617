#include "contrastive/data/retrieval_set.h"

#include <unordered_map>
#include <utility>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/data/image_list.h"
#include "contrastive/data/webdataset_source.h"

#include "data/caption_files.h"
#include "data/data_file.h"
#include "data/sample_members.h"
#include "data/shard_folder.h"

namespace contrastive::data {
namespace {

namespace fs = std::filesystem;

/// Adds the captions of image number `image`, as many as the options want.
void add_captions(std::vector<std::string>&& captions, int64_t image, int64_t wanted, RetrievalSet& set) {
  if (wanted > 0 && static_cast<int64_t>(captions.size()) > wanted) captions.resize(static_cast<size_t>(wanted));
  for (auto& caption : captions) {
    set.captions.push_back(std::move(caption));
    set.caption_image.push_back(image);
  }
}

/// Reads the .txt members alone: as images of another source.
void read_shard_captions(const ShardIndex& index, int64_t wanted, RetrievalSet& set) {
  WebdatasetOptions options;
  options.image_keys = "txt";
  options.need_caption = false;
  const WebdatasetSource texts(index, options);
  Sample sample;
  for (int64_t i = 0; i < texts.size(); ++i) {
    RandomStream random(/*seed=*/0, RandomPurpose::caption, {i});
    try {
      if (!index.sample(i).find("txt")) {
        throw DataError(
            fmt::format("no caption: expected a member .txt; the sample has {}", index.sample(i).member_list()));
      }
      texts.read(i, random, sample);
      const std::string content(sample.encoded.begin(), sample.encoded.end());
      add_captions(detail::parse_captions(content, "", /*caption_lines=*/true), i, wanted, set);
    } catch (const DataError& error) {
      throw DataError(fmt::format("{}: {}", texts.describe(i), error.what()));
    }
  }
}

RetrievalSet open_shards(const detail::ShardFolder& folder, const RetrievalSetOptions& given) {
  if (const auto type = detail::dataset_type(folder); !type.empty() && type != "retrieval") {
    throw DataError(
        fmt::format("[{}] the data set is for {} (dataset_type.txt), expected retrieval", folder.root.string(), type));
  }
  RetrievalSet set;
  set.name = folder.root.filename().string();
  const auto index = ShardIndex::open(detail::find_shards(folder.split));
  WebdatasetOptions options;
  options.image_keys = "webp;png;jpg;jpeg";
  options.need_caption = false;
  set.source = std::make_shared<WebdatasetSource>(index, options);
  read_shard_captions(index, given.captions_per_image, set);
  return set;
}

/// The first of an image's places where there is a file, or the first of all.
std::string choose_path(const fs::path& root, const detail::CaptionedImage& image) {
  for (const auto& path : image.paths) {
    if (detail::is_file(root / path)) return path;
  }
  return image.paths.front();
}

RetrievalSet open_files(const fs::path& file, const fs::path& root, const RetrievalSetOptions& options) {
  auto images = detail::read_captions_file(file, options);
  RetrievalSet set;
  set.name = file.stem().string();
  std::vector<ListedImage> list;
  std::unordered_map<std::string, std::string> place_of;
  for (auto& image : images) {
    add_captions(std::move(image.captions), static_cast<int64_t>(list.size()), options.captions_per_image, set);
    list.push_back({choose_path(root, image), -1, {}});
    const auto [first, is_new] = place_of.emplace(list.back().path, image.paths.front());
    if (is_new || first->second == image.paths.front()) continue;
    throw DataError(fmt::format("[{}] the images {} and {} are both found as {} in [{}]: expected a file each",
                                file.string(), first->second, image.paths.front(), first->first, root.string()));
  }
  set.source = std::make_shared<ImageListSource>(root, std::move(list));
  return set;
}

void check_options(const RetrievalSetOptions& options) {
  if (options.captions_per_image < 0) {
    throw ConfigError(
        fmt::format("captions_per_image: expected 0 (all) or more, but is {}", options.captions_per_image));
  }
}

}  // namespace

RetrievalSet open_retrieval_set(const fs::path& data, const RetrievalSetOptions& options) {
  check_options(options);
  if (detail::is_folder(data) && options.captions.empty()) {
    if (const auto folder = detail::find_shard_folder(data, options.split)) return open_shards(*folder, options);
    const auto file = detail::find_captions_file(data, options.split);
    return open_files(file, options.images.empty() ? data : fs::path(options.images), options);
  }
  const auto file = options.captions.empty() ? data : fs::path(options.captions);
  if (!detail::is_file(file)) {
    throw DataError(
        fmt::format("[{}] is not a folder or file; expected image-caption pairs: a webdataset folder, a "
                    "JSON or a CSV file",
                    file.string()));
  }
  auto root = detail::is_folder(data) ? data : fs::absolute(data).parent_path();
  if (!options.images.empty()) root = options.images;
  if (!detail::is_folder(root)) {
    throw DataError(fmt::format("[{}] the images' folder is not there", root.string()));
  }
  return open_files(file, root, options);
}

}  // namespace contrastive::data
