#include "contrastive/data/image_list.h"

#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"

#include "data/read_file.h"

namespace contrastive::data {

namespace fs = std::filesystem;

ImageListSource::ImageListSource(fs::path root, std::vector<ListedImage> images)
    : root_(std::move(root)), images_(std::move(images)) {
  if (images_.empty()) throw DataError(fmt::format("[{}] the list of images is empty", root_.string()));
  bytes_.reserve(images_.size());
  int64_t missing = 0;
  const ListedImage* first = nullptr;
  for (const auto& entry : images_) {
    std::error_code error;
    const auto bytes = fs::file_size(root_ / entry.path, error);
    bytes_.push_back(error ? -1 : static_cast<int64_t>(bytes));
    if (!error) continue;
    if (missing++ == 0) first = &entry;
  }
  if (missing > 0) {
    throw DataError(fmt::format("[{}] {} of {} image files are missing; the first is {}", root_.string(), missing,
                                images_.size(), first->path));
  }
}

const ListedImage& ImageListSource::image(int64_t index) const {
  if (index >= 0 && index < size()) return images_[static_cast<size_t>(index)];
  throw DataError(fmt::format("[{}] sample {} is not in [0, {})", root_.string(), index, size()));
}

void ImageListSource::read(int64_t index, RandomStream&, Sample& sample) const {
  const auto& entry = image(index);
  const detail::ReadFile file(root_ / entry.path);
  const auto bytes = file.stamp().bytes;
  if (bytes > kMaxImageBytes) {
    throw DataError(fmt::format("the image has {} bytes, but at most {} are allowed", bytes, kMaxImageBytes));
  }
  sample.drawn = {};
  sample.caption.clear();
  sample.label = entry.label;
  sample.labels = entry.labels;
  sample.encoded.resize(static_cast<size_t>(bytes));
  file.read(0, sample.encoded);
  bytes_read_ += bytes;
}

std::string ImageListSource::describe(int64_t index) const {
  return fmt::format("[{}] sample {}", root_.string(), key(index));
}

std::string ImageListSource::fingerprint() const {
  std::string text;
  for (size_t i = 0; i < images_.size(); ++i) {
    text +=
        fmt::format("{}\n{} {} {}\n", images_[i].path, bytes_[i], images_[i].label, fmt::join(images_[i].labels, ","));
  }
  return sha256_hex({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

}  // namespace contrastive::data
