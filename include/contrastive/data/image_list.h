#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/data/source.h"

namespace contrastive::data {

/// One file of a list.
struct ListedImage {
  std::string path;             ///< relative to the list's root, or absolute
  int64_t label = -1;           ///< class index, or -1
  std::vector<int64_t> labels;  ///< of multi-label sets
};

/// Image files with labels, in the order of a list, read by position from any number of threads.
class CONTRASTIVE_API ImageListSource : public SampleSource {
 public:
  static constexpr int64_t kMaxImageBytes = int64_t{256} << 20;

  /// Throws: DataError if the list is empty, or files are missing: names the first and says how many.
  ImageListSource(std::filesystem::path root, std::vector<ListedImage> images);

  int64_t size() const override { return static_cast<int64_t>(images_.size()); }

  /// Throws: DataError if the file can't be read, is no regular file or is larger than kMaxImageBytes.
  void read(int64_t index, RandomStream& random, Sample& sample) const override;

  /// The path in the list.
  std::string key(int64_t index) const override { return image(index).path; }

  /// "[pets] sample cat/1.jpg"
  std::string describe(int64_t index) const override;

  /// SHA-256 over the paths in the list, the files' sizes when the list was made, and the labels, in order.
  std::string fingerprint() const override;

  int64_t bytes_read() const override { return bytes_read_; }

 private:
  const ListedImage& image(int64_t index) const;

  std::filesystem::path root_;
  std::vector<ListedImage> images_;
  std::vector<int64_t> bytes_;  ///< [N]
  mutable std::atomic<int64_t> bytes_read_ = 0;
};

}  // namespace contrastive::data
