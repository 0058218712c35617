#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/data/shard_index.h"
#include "contrastive/data/source.h"

namespace contrastive::data {

struct WebdatasetOptions {
  std::string image_keys = "jpg;jpeg;png;webp";  ///< extensions; the first that a sample has is taken
  std::string caption_key = "txt";               ///< extensions like above, or json:<field> of the .json member
  bool caption_lines = false;                    ///< every line of a text member is a caption; else all of it is one
  bool need_caption = true;
  bool need_label = false;    ///< read the .cls member
  bool label_vector = false;  ///< the label's member is .npy, a vector of 0 and 1 that gives Sample::labels
  int64_t num_labels = 0;     ///< above 0: labels must lie in [0, num_labels); vectors have so many values
  int64_t max_member_bytes = int64_t{256} << 20;
  int64_t max_open_shards = 128;  ///< file descriptors kept open
};

/// Samples of webdataset shards, read by position from any number of threads.
///
/// Captions are stripped of white space at both ends; a field of a .json member may be a string or a list of strings.
/// Every sample of the index counts, also one that can't be read: read() then throws a DataError that names the
/// missing member and those that are there, or says why the content is refused (no or empty caption, not UTF-8, above
/// max_member_bytes, label out of range), or that the shard vanished or changed since it was indexed.
class CONTRASTIVE_API WebdatasetSource : public SampleSource {
 public:
  /// Throws: ConfigError if an option is out of range; DataError if the shards have no sample, or none of their
  /// samples has the members that are needed.
  explicit WebdatasetSource(ShardIndex index, const WebdatasetOptions& options = {});
  ~WebdatasetSource() override;

  int64_t size() const override { return index_.size(); }
  void read(int64_t index, RandomStream& random, Sample& sample) const override;
  std::vector<std::string> read_with_all_captions(int64_t index, Sample& sample) const override;
  std::string key(int64_t index) const override;

  /// "[shards/00017.tar] sample 000170042"
  std::string describe(int64_t index) const override;

  /// SHA-256 over the shards' file names (without folders), sizes and sample counts, in order.
  std::string fingerprint() const override;

  /// "image jpg;png, caption txt"
  std::string settings() const override;

  int64_t bytes_read() const override { return bytes_read_; }

  const ShardIndex& index() const { return index_; }

 private:
  class OpenShards;

  /// Reads all but the caption into `sample`. Returns: the captions.
  std::vector<std::string> read_all(int64_t index, Sample& sample) const;

  ShardIndex index_;
  WebdatasetOptions options_;
  std::vector<std::string> image_keys_;
  std::vector<std::string> caption_keys_;
  std::string json_field_;
  std::unique_ptr<OpenShards> open_shards_;
  mutable std::atomic<int64_t> bytes_read_ = 0;
};

}  // namespace contrastive::data
