#include "contrastive/data/shard_writer.h"

#include <algorithm>
#include <mutex>
#include <string_view>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/random.h"
#include "contrastive/data/tar.h"
#include "contrastive/image/image.h"

#include "data/parallel.h"
#include "data/sample_members.h"

namespace contrastive::data {
namespace {

namespace fs = std::filesystem;

/// What the two layouts differ in.
struct Layout {
  fs::path folder;
  std::string_view shard_name;  ///< fmt pattern of the shard's number
  int64_t num_labels = 0;       ///< above 0: every sample needs a label below it
};

void check_arguments(const SampleSource& source, int64_t samples_per_shard, const ShardWriterOptions& options) {
  const auto require = [](bool holds, const char* name, const char* expected, int64_t value) {
    if (!holds) throw ConfigError(fmt::format("{}: expected {}, but is {}", name, expected, value));
  };
  require(samples_per_shard >= 1, "samples_per_shard", "at least 1", samples_per_shard);
  require(options.jpeg_quality >= 1 && options.jpeg_quality <= 100, "jpeg_quality", "1 to 100", options.jpeg_quality);
  require(options.threads >= 0, "threads", "at least 0", options.threads);
  if (source.size() < 1) throw DataError("[write shards] the source is empty");
}

void create_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw Error(fmt::format("[{}] the folder can't be created: {}", folder.string(), error.message()));
}

void prepare_folder(const fs::path& folder) {
  create_folder(folder);
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".tar") continue;
    throw DataError(fmt::format("[{}] already holds {}; shards are only written to a folder without any",
                                folder.string(), entry.path().filename().string()));
  }
}

/// Writes the shards of one call; add() may run for several shards at a time.
class ShardSetWriter {
 public:
  ShardSetWriter(const SampleSource& source, const Layout& layout, int64_t samples_per_shard,
                 const ShardWriterOptions& options)
      : source_(source), layout_(layout), samples_per_shard_(samples_per_shard), options_(options) {}

  int64_t num_shards() const { return (source_.size() - 1) / samples_per_shard_ + 1; }

  void run() {
    detail::parallel_for(num_shards(), options_.threads, [this](int64_t shard) { write_shard(shard); });
  }

 private:
  void write_shard(int64_t shard) {
    TarWriter writer(layout_.folder / fmt::format(fmt::runtime(layout_.shard_name), shard));
    const int64_t begin = shard * samples_per_shard_;
    const int64_t end = begin + std::min(samples_per_shard_, source_.size() - begin);
    Sample sample;
    for (int64_t index = begin; index < end; ++index) {
      try {
        add_sample(index, sample, writer);
      } catch (const DataError& error) {
        throw DataError(fmt::format("{}: {}", source_.describe(index), error.what()));
      }
      report_one_done();
    }
    writer.close();
  }

  void add_sample(int64_t index, Sample& sample, TarWriter& writer) const {
    RandomStream random(options_.seed, RandomPurpose::caption, {index});
    source_.read(index, random, sample);
    const auto key = fmt::format("{:09}", index);
    if (sample.encoded.empty()) {
      const bool png = options_.drawn_format == DrawnFormat::png;
      const auto encoded =
          png ? image::encode_png(sample.drawn) : image::encode_jpeg(sample.drawn, options_.jpeg_quality);
      writer.add(key + (png ? ".png" : ".jpg"), encoded);
    } else {
      writer.add(key + "." + detail::image_extension(sample.encoded), sample.encoded);
    }
    if (!sample.caption.empty()) writer.add(key + ".txt", sample.caption);
    if (layout_.num_labels > 0) check_label(sample.label);
    if (sample.label >= 0) writer.add(key + ".cls", fmt::format("{}", sample.label));
  }

  void check_label(int64_t label) const {
    if (label >= 0 && label < layout_.num_labels) return;
    throw DataError(fmt::format("the label is {}, expected [0, {})", label, layout_.num_labels));
  }

  void report_one_done() {
    if (!options_.progress) return;
    const std::lock_guard lock(mutex_);
    options_.progress(++done_, source_.size());
  }

  const SampleSource& source_;
  const Layout& layout_;
  int64_t samples_per_shard_;
  const ShardWriterOptions& options_;
  std::mutex mutex_;
  int64_t done_ = 0;
};

std::string join_lines(const std::vector<std::string>& lines, const char* what) {
  std::string text;
  for (const auto& line : lines) {
    if (detail::strip(line).empty() || line.find_first_of("\r\n") != std::string::npos) {
      throw DataError(fmt::format("[write shards] \"{}\" can't be a {}: it is empty or spans lines", line, what));
    }
    text += line + "\n";
  }
  return text;
}

/// Writes a list, or checks that the one already there is equal.
void write_list(const fs::path& file, const std::string& content) {
  std::error_code error;
  if (!fs::exists(file, error)) return write_file_atomically(file, content);
  if (read_text_file(file) != content) {
    throw DataError(fmt::format("[{}] exists and differs from the list of the set to be written", file.string()));
  }
}

}  // namespace

void write_shards(const SampleSource& source, const fs::path& folder, int64_t samples_per_shard,
                  const ShardWriterOptions& options) {
  check_arguments(source, samples_per_shard, options);
  prepare_folder(folder);
  const Layout layout{folder, "{:05}.tar"};
  ShardSetWriter(source, layout, samples_per_shard, options).run();
}

void write_classification_folder(const ClassificationSet& set, const fs::path& folder, const std::string& split,
                                 int64_t samples_per_shard, const ShardWriterOptions& options) {
  check_arguments(*set.source, samples_per_shard, options);
  if (split.empty() || split.find('/') != std::string::npos) {
    throw ConfigError(fmt::format("split: expected a folder name like test, but is \"{}\"", split));
  }
  if (set.class_names.empty() || set.templates.empty()) {
    throw DataError(fmt::format("[{}] a set needs class names and templates, but has {} and {}", folder.string(),
                                set.class_names.size(), set.templates.size()));
  }
  const auto names = join_lines(set.class_names, "class name");
  const auto templates = join_lines(set.templates, "template");
  create_folder(folder);
  write_list(folder / "classnames.txt", names);
  write_list(folder / "zeroshot_classification_templates.txt", templates);
  prepare_folder(folder / split);
  const Layout layout{folder / split, "{}.tar", static_cast<int64_t>(set.class_names.size())};
  ShardSetWriter writer(*set.source, layout, samples_per_shard, options);
  writer.run();
  write_file_atomically(folder / split / "nshards.txt", fmt::format("{}\n", writer.num_shards()));
}

}  // namespace contrastive::data
