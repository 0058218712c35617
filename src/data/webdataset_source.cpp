#include "contrastive/data/webdataset_source.h"

#include <algorithm>
#include <mutex>
#include <span>

#include <fmt/format.h>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"

#include "data/label_vector.h"
#include "data/read_file.h"
#include "data/sample_members.h"

namespace contrastive::data {

/// A bounded number of open shards; the one unused for longest makes room.
class WebdatasetSource::OpenShards {
 public:
  using File = std::shared_ptr<const detail::ReadFile>;

  OpenShards(const ShardIndex& index, int64_t capacity)
      : capacity_(static_cast<size_t>(capacity)), slot_of_shard_(static_cast<size_t>(index.num_shards()), -1) {}

  /// The open file; it stays usable for the caller when it is closed here meanwhile.
  File get(const ShardIndex& index, int64_t shard) {
    if (auto file = find(shard)) return file;
    // Opened outside the lock: on a network file system this takes its time.
    auto file = std::make_shared<const detail::ReadFile>(index.shard_path(shard));
    check_unchanged(file->stamp(), {index.shard_bytes(shard), index.shard_mtime_ns(shard)});
    insert(shard, file);
    return file;
  }

 private:
  struct Slot {
    int64_t shard;
    uint64_t last_use;
    File file;
  };

  static void check_unchanged(const detail::FileStamp& now, const detail::FileStamp& indexed) {
    if (now == indexed) return;
    const auto what = now.bytes == indexed.bytes ? std::string("its modification time is another")
                                                 : fmt::format("it had {} bytes, now {}", indexed.bytes, now.bytes);
    throw DataError("the shard changed since it was indexed: " + what);
  }

  File find(int64_t shard) {
    const std::lock_guard lock(mutex_);
    const auto slot = slot_of_shard_[static_cast<size_t>(shard)];
    if (slot < 0) return nullptr;
    auto& found = slots_[static_cast<size_t>(slot)];
    found.last_use = ++clock_;
    return found.file;
  }

  void insert(int64_t shard, const File& file) {
    const std::lock_guard lock(mutex_);
    auto& number = slot_of_shard_[static_cast<size_t>(shard)];
    if (number >= 0) return;  // another thread was faster
    if (slots_.size() < capacity_) {
      slots_.push_back({shard, ++clock_, file});
      number = static_cast<int32_t>(slots_.size() - 1);
      return;
    }
    const auto oldest = std::min_element(slots_.begin(), slots_.end(),
                                         [](const Slot& a, const Slot& b) { return a.last_use < b.last_use; });
    slot_of_shard_[static_cast<size_t>(oldest->shard)] = -1;
    number = static_cast<int32_t>(oldest - slots_.begin());
    *oldest = {shard, ++clock_, file};
  }

  std::mutex mutex_;
  size_t capacity_;
  uint64_t clock_ = 0;
  std::vector<Slot> slots_;
  std::vector<int32_t> slot_of_shard_;
};

namespace {

// A caption this close behind its image is read along with it.
constexpr int64_t kMaxGap = 16 << 10;

std::span<uint8_t> resized(std::vector<uint8_t>& buffer, int64_t bytes) {
  buffer.resize(static_cast<size_t>(bytes));
  return buffer;
}

std::string read_text(const detail::ReadFile& file, const IndexedMember& member) {
  std::string text(static_cast<size_t>(member.length), '\0');
  file.read(member.offset, {reinterpret_cast<uint8_t*>(text.data()), text.size()});
  return text;
}

/// Reads the image into `encoded` and returns the caption's content, in one read if they lie close together.
std::string read_image_and_caption(const detail::ReadFile& file, const IndexedMember& image,
                                   const IndexedMember& caption, std::vector<uint8_t>& encoded) {
  const int64_t gap = caption.offset - (image.offset + image.length);
  if (gap < 0 || gap > kMaxGap || caption.length > kMaxGap) {
    file.read(image.offset, resized(encoded, image.length));
    return read_text(file, caption);
  }
  file.read(image.offset, resized(encoded, image.length + gap + caption.length));
  const auto* text = reinterpret_cast<const char*>(encoded.data()) + image.length + gap;
  std::string content(text, static_cast<size_t>(caption.length));
  encoded.resize(static_cast<size_t>(image.length));
  return content;
}

void check_options(const WebdatasetOptions& options) {
  const auto at_least_one = [](const char* name, int64_t value) {
    if (value < 1) throw ConfigError(fmt::format("{}: expected at least 1, but is {}", name, value));
  };
  at_least_one("max_member_bytes", options.max_member_bytes);
  at_least_one("max_open_shards", options.max_open_shards);
}

/// A set of which nothing can be used would make a run skip samples for ever: says so before it starts.
void check_some_sample_is_usable(const ShardIndex& index, const detail::MemberKeys& keys,
                                 const WebdatasetOptions& options) {
  if (index.size() == 0) {
    throw DataError(fmt::format("the {} shards from {} on hold no sample", index.num_shards(),
                                index.num_shards() > 0 ? index.shard_path(0).string() : "none"));
  }
  const auto require_all = [&](const IndexedSample& sample) {
    detail::require_member(sample, keys.image, "image");
    if (options.need_caption) detail::require_member(sample, keys.caption, "caption");
    if (options.need_label) detail::require_member(sample, keys.label, "label");
  };
  const auto is_usable = [&](const IndexedSample& sample) {
    return detail::find_member(sample, keys.image) &&
           (!options.need_caption || detail::find_member(sample, keys.caption)) &&
           (!options.need_label || detail::find_member(sample, keys.label));
  };
  for (int64_t i = 0; i < index.size(); ++i) {
    if (is_usable(index.sample(i))) return;
  }
  try {
    require_all(index.sample(0));
  } catch (const DataError& error) {
    throw DataError(fmt::format("none of the {} samples can be used; the first, {} in [{}]: {}", index.size(),
                                index.sample(0).key(), index.shard_path(index.sample(0).shard()).string(),
                                error.what()));
  }
}

}  // namespace

WebdatasetSource::WebdatasetSource(ShardIndex index, const WebdatasetOptions& options)
    : index_(std::move(index)), options_(options) {
  check_options(options);
  auto keys = detail::parse_member_keys(options);
  check_some_sample_is_usable(index_, keys, options);
  image_keys_ = std::move(keys.image);
  caption_keys_ = std::move(keys.caption);
  json_field_ = std::move(keys.json_field);
  open_shards_ = std::make_unique<OpenShards>(index_, options.max_open_shards);
}

WebdatasetSource::~WebdatasetSource() = default;

void WebdatasetSource::read(int64_t index, RandomStream& random, Sample& sample) const {
  auto captions = read_all(index, sample);
  if (captions.empty()) return;
  const auto choice = captions.size() == 1 ? 0 : random.below(static_cast<int64_t>(captions.size()));
  sample.caption = std::move(captions[static_cast<size_t>(choice)]);
}

std::vector<std::string> WebdatasetSource::read_with_all_captions(int64_t index, Sample& sample) const {
  auto captions = read_all(index, sample);
  if (!captions.empty()) sample.caption = captions.front();
  return captions;
}

std::vector<std::string> WebdatasetSource::read_all(int64_t index, Sample& sample) const {
  const auto entry = index_.sample(index);
  sample.drawn = {};
  sample.caption.clear();
  sample.label = -1;
  sample.labels.clear();
  const auto image = detail::require_member(entry, image_keys_, "image");
  detail::check_length(image, options_.max_member_bytes);
  const auto file = open_shards_->get(index_, entry.shard());
  std::vector<std::string> captions;
  if (options_.need_caption) {
    const auto caption = detail::require_member(entry, caption_keys_, "caption");
    detail::check_length(caption, options_.max_member_bytes);
    const auto content = read_image_and_caption(*file, image, caption, sample.encoded);
    captions = detail::parse_captions(content, json_field_, options_.caption_lines);
    bytes_read_ += caption.length;
  } else {
    file->read(image.offset, resized(sample.encoded, image.length));
  }
  bytes_read_ += image.length;
  if (options_.need_label) {
    const auto label = detail::require_member(entry, detail::label_keys(options_), "label");
    detail::check_length(label, options_.max_member_bytes);
    const auto content = read_text(*file, label);
    if (options_.label_vector) {
      sample.labels = detail::parse_label_vector(content, options_.num_labels);
    } else {
      sample.label = detail::parse_label(content, options_.num_labels);
    }
  }
  return captions;
}

std::string WebdatasetSource::key(int64_t index) const {
  return std::string(index_.sample(index).key());
}

std::string WebdatasetSource::describe(int64_t index) const {
  const auto sample = index_.sample(index);
  return fmt::format("[{}] sample {}", index_.shard_path(sample.shard()).string(), sample.key());
}

std::string WebdatasetSource::fingerprint() const {
  std::string text;
  for (int64_t shard = 0; shard < index_.num_shards(); ++shard) {
    text += fmt::format("{} {} {}\n", index_.shard_path(shard).filename().string(), index_.shard_bytes(shard),
                        index_.shard_begin(shard + 1) - index_.shard_begin(shard));
  }
  return sha256_hex({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

std::string WebdatasetSource::settings() const {
  return fmt::format("image {}, caption {}{}", options_.image_keys, options_.caption_key,
                     options_.caption_lines ? ", a line each" : "");
}

}  // namespace contrastive::data
