#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/data/shard_index.h"
#include "contrastive/data/shard_list.h"
#include "contrastive/data/webdataset_source.h"
#include "contrastive/eval/encoder.h"
#include "contrastive/eval/feature_writer.h"

#include "common/count_progress.h"
#include "common/program.h"
#include "embed_cache.h"

namespace {

using namespace contrastive;
namespace fs = std::filesystem;

constexpr int64_t kMaxListBytes = int64_t{16} << 30;
/// Batches between two looks at the progress and at stop signals.
constexpr int64_t kBatchesPerCall = 8;

struct Arguments {
  std::string input;
  std::string checkpoint;
  std::string model;
  std::string output;
  std::string precision = "fp32";
  std::string dtype = "fp32";
  std::string on_bad_image = "fail";
  std::string image_keys = data::WebdatasetOptions{}.image_keys;
  std::string caption_key = "txt";
  bool raw = false;
  int64_t batch_size = 64;
  int64_t workers = 0;
  int64_t part_rows = 16384;
};

/// What is to be embedded, row by row.
class Input {
 public:
  virtual ~Input() = default;
  virtual int64_t size() const = 0;
  virtual std::string name(int64_t index) const = 0;
  virtual eval::EncodedImages encode(const eval::Encoder& encoder, int64_t begin, int64_t end) const = 0;

  /// Changes when the content does.
  virtual std::string fingerprint() const = 0;
};

std::string digest_of(const std::string& text) {
  return sha256_hex({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

std::vector<std::string> read_lines(const std::string& file) {
  const auto content = read_text_file(file, kMaxListBytes);
  std::vector<std::string> lines;
  for (size_t begin = 0; begin < content.size();) {
    const auto end = std::min(content.find('\n', begin), content.size());
    const auto length = end > begin && content[end - 1] == '\r' ? end - begin - 1 : end - begin;
    lines.push_back(content.substr(begin, length));
    begin = end + 1;
  }
  if (lines.empty()) throw DataError(fmt::format("[{}] holds no line", file));
  return lines;
}

bool is_image_name(const fs::path& path) {
  auto extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](char c) { return static_cast<char>(c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c); });
  static const std::vector<std::string> kExtensions{".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"};
  return std::find(kExtensions.begin(), kExtensions.end(), extension) != kExtensions.end();
}

class ImageFiles : public Input {
 public:
  /// Every image below a folder, in the order of their paths.
  static std::unique_ptr<Input> in_folder(const fs::path& folder) {
    auto input = std::make_unique<ImageFiles>();
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      if (!entry.is_directory() && is_image_name(entry.path())) {
        input->names_.push_back(entry.path().lexically_relative(folder).string());
      }
    }
    if (input->names_.empty()) throw DataError(fmt::format("[{}] holds no image", folder.string()));
    std::sort(input->names_.begin(), input->names_.end());
    for (const auto& name : input->names_) input->files_.push_back(folder / name);
    return input;
  }

  /// The files that a text file names, a path a line.
  static std::unique_ptr<Input> in_list(const std::string& file) {
    auto input = std::make_unique<ImageFiles>();
    input->names_ = read_lines(file);
    input->files_.assign(input->names_.begin(), input->names_.end());
    return input;
  }

  int64_t size() const override { return static_cast<int64_t>(names_.size()); }
  std::string name(int64_t index) const override { return names_[static_cast<size_t>(index)]; }

  eval::EncodedImages encode(const eval::Encoder& encoder, int64_t begin, int64_t end) const override {
    return encoder.try_encode_images(
        std::span(files_).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
  }

  std::string fingerprint() const override {
    std::string text;
    for (size_t i = 0; i < files_.size(); ++i) {
      std::error_code error;
      const auto bytes = fs::file_size(files_[i], error);
      const auto time = fs::last_write_time(files_[i], error).time_since_epoch().count();
      text += fmt::format("{} {} {}\n", names_[i], error ? 0 : bytes, error ? 0 : time);
    }
    return digest_of(text);
  }

 private:
  std::vector<std::string> names_;
  std::vector<fs::path> files_;
};

class ShardInput : public Input {
 public:
  ShardInput(const Arguments& arguments, bool need_caption) {
    const auto shards = data::expand_shard_list(arguments.input);
    data::require_shards_exist(shards);
    data::WebdatasetOptions options;
    options.image_keys = arguments.image_keys;
    options.caption_key = arguments.caption_key;
    options.need_caption = need_caption;
    source_ = std::make_unique<data::WebdatasetSource>(data::ShardIndex::open(shards), options);
  }

  int64_t size() const override { return source_->size(); }
  std::string name(int64_t index) const override { return std::string(source_->index().sample(index).key()); }
  std::string fingerprint() const override { return source_->fingerprint(); }

 protected:
  std::unique_ptr<data::WebdatasetSource> source_;
};

class ShardImages : public ShardInput {
 public:
  explicit ShardImages(const Arguments& arguments) : ShardInput(arguments, /*need_caption=*/false) {}

  eval::EncodedImages encode(const eval::Encoder& encoder, int64_t begin, int64_t end) const override {
    return encoder.try_encode_images(*source_, begin, end);
  }
};

class ShardCaptions : public ShardInput {
 public:
  explicit ShardCaptions(const Arguments& arguments) : ShardInput(arguments, /*need_caption=*/true) {}

  eval::EncodedImages encode(const eval::Encoder& encoder, int64_t begin, int64_t end) const override {
    std::vector<std::string> captions;
    std::vector<eval::ImageFailure> failures;
    data::Sample sample;
    for (int64_t i = begin; i < end; ++i) {
      RandomStream random(/*seed=*/0, RandomPurpose::caption, {i});
      try {
        source_->read(i, random, sample);
        captions.push_back(sample.caption);
      } catch (const DataError& error) {
        captions.emplace_back();
        failures.push_back({i - begin, source_->describe(i), error.what()});
      }
    }
    return {encoder.encode_texts(captions), std::move(failures)};
  }
};

class TextLines : public Input {
 public:
  explicit TextLines(const std::string& file) : lines_(read_lines(file)) {}

  int64_t size() const override { return static_cast<int64_t>(lines_.size()); }
  std::string name(int64_t index) const override { return lines_[static_cast<size_t>(index)]; }
  std::string fingerprint() const override { return digest_of(fmt::format("{}", fmt::join(lines_, "\n"))); }

  eval::EncodedImages encode(const eval::Encoder& encoder, int64_t begin, int64_t end) const override {
    const auto part = std::span(lines_).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    return {encoder.encode_texts(part), {}};
  }

 private:
  std::vector<std::string> lines_;
};

std::unique_ptr<Input> open_input(const Arguments& arguments, bool images) {
  const auto& input = arguments.input;
  const bool is_shards = input.ends_with(".tar") || input.find("::") != std::string::npos ||
                         (input.find('{') != std::string::npos && !fs::exists(input));
  if (is_shards && images) return std::make_unique<ShardImages>(arguments);
  if (is_shards) return std::make_unique<ShardCaptions>(arguments);
  if (images && fs::is_directory(input)) return ImageFiles::in_folder(input);
  if (!fs::is_regular_file(input)) {
    throw DataError(fmt::format("[{}] is neither a file{} nor a list of shards", input, images ? ", a folder" : ""));
  }
  if (images) return ImageFiles::in_list(input);
  return std::make_unique<TextLines>(input);
}

eval::Encoder open_encoder(const Arguments& arguments) {
  eval::EncoderOptions options;
  options.bf16 = arguments.precision == "amp_bf16";
  options.batch_size = arguments.batch_size;
  options.threads = arguments.workers;
  options.normalize = !arguments.raw;
  eval::CheckpointRequest request;
  request.path = arguments.checkpoint;
  request.model = arguments.model;
  return eval::Encoder::open(request, options);
}

eval::FeatureFileOptions writer_options(const Arguments& arguments, const Input& input, const eval::Encoder& encoder,
                                        bool images) {
  eval::FeatureFileOptions options;
  const fs::path output = arguments.output;
  const bool is_file = output.extension() == ".safetensors";
  options.features = is_file ? output : output / "features.safetensors";
  options.names = is_file ? fs::path(output).replace_extension(".names.txt") : output / "names.txt";
  options.num_inputs = input.size();
  options.inputs_per_part = arguments.part_rows;
  options.settings = {{"kind", images ? "images" : "texts"},
                      {"input_sha256", input.fingerprint()},
                      {"model_sha256", encoder.fingerprint()},
                      {"precision", arguments.precision},
                      {"dtype", arguments.dtype},
                      {"normalized", arguments.raw ? "no" : "yes"},
                      {"on_bad_image", arguments.on_bad_image}};
  const auto folder = options.features.parent_path();
  if (!folder.empty()) fs::create_directories(folder);
  return options;
}

/// Rows, names and failures of a part as it grows.
struct Part {
  std::vector<torch::Tensor> features;
  std::vector<std::string> names;
  std::vector<eval::SkippedInput> skipped;

  void add(const Input& input, int64_t begin, const eval::EncodedImages& encoded) {
    std::vector<int64_t> good;
    auto failure = encoded.failures.begin();
    for (int64_t i = 0; i < encoded.features.size(0); ++i) {
      if (failure != encoded.failures.end() && failure->index == i) {
        skipped.push_back({input.name(begin + i), failure++->reason});
      } else {
        names.push_back(input.name(begin + i));
        good.push_back(i);
      }
    }
    features.push_back(encoded.features.index_select(0, at::tensor(good, at::kLong)));
  }
};

void refuse(const eval::ImageFailure& failure) {
  throw DataError(fmt::format("{}: {} (--on-bad-image skip leaves such images out)", failure.name, failure.reason));
}

void print_report(const eval::FeatureFileOptions& options, const eval::FeatureFileReport& report) {
  fmt::print("{} rows in {}, their names in {}\n", report.num_rows, options.features.string(), options.names.string());
  if (report.num_skipped == 0) return;
  fmt::print("{} inputs left out\n", report.num_skipped);
  for (const auto& [name, reason] : report.first_skipped) fmt::print("  {}: {}\n", name, reason);
}

int embed(const Arguments& arguments, bool images) {
  tools::install_stop_signals();
  const auto input = open_input(arguments, images);
  const auto encoder = open_encoder(arguments);
  const auto options = writer_options(arguments, *input, encoder, images);
  eval::FeatureWriter writer(options);
  if (writer.is_complete()) fmt::print("nothing to do: {} is complete\n", options.features.string());
  if (!writer.is_complete() && writer.next_input() > 0) fmt::print("going on at input {}\n", writer.next_input());
  tools::CountProgress progress("", writer.next_input(), input->size());
  int64_t skipped = 0;
  while (writer.next_input() < input->size()) {
    Part part;
    for (auto begin = writer.next_input(); begin < writer.part_end();) {
      if (tools::stop_requested()) {
        fmt::print("\nstopped on request; the same command goes on at input {}\n", writer.next_input());
        return tools::kDone;
      }
      const auto end = std::min(writer.part_end(), begin + kBatchesPerCall * arguments.batch_size);
      const auto encoded = input->encode(encoder, begin, end);
      if (!encoded.failures.empty() && arguments.on_bad_image == "fail") refuse(encoded.failures.front());
      part.add(*input, begin, encoded);
      skipped += static_cast<int64_t>(encoded.failures.size());
      begin = end;
      progress.update(begin, fmt::format("skipped {}", skipped));
    }
    const auto dtype = arguments.dtype == "fp16" ? at::kHalf : at::kFloat;
    writer.write_part(at::cat(part.features).to(dtype), part.names, part.skipped);
  }
  print_report(options, writer.finish());
  return tools::kDone;
}

void add_options(CLI::App& command, Arguments& arguments, const char* input_help) {
  command.add_option("input", arguments.input, input_help)->required();
  command
      .add_option("--checkpoint", arguments.checkpoint,
                  "a run, one of its checkpoints, a published model's folder, or a weights file")
      ->required();
  command.add_option("--model", arguments.model, "a shipped model's name or JSON file, for weights without a config");
  command
      .add_option("--output", arguments.output,
                  "a folder (features.safetensors and names.txt go there), or the name of a .safetensors file")
      ->required();
  command.add_option("--batch-size", arguments.batch_size)->check(CLI::Range(1, 65536))->capture_default_str();
  command.add_option("--workers", arguments.workers, "decoding threads; 0: one a core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command.add_option("--precision", arguments.precision)
      ->check(CLI::IsMember({"fp32", "amp_bf16"}))
      ->capture_default_str();
  command.add_option("--dtype", arguments.dtype, "of the stored features")
      ->check(CLI::IsMember({"fp32", "fp16"}))
      ->capture_default_str();
  command.add_flag("--raw", arguments.raw, "keep the rows' lengths; without it they are L2-normalised");
  command.add_option("--part-rows", arguments.part_rows, "inputs a part; a kill loses at most one part")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  command.add_option("--image-keys", arguments.image_keys, "of shards: the image's extensions")->capture_default_str();
}

CLI::App* add_cache_command(CLI::App& app, tools::CacheArguments& arguments) {
  auto* cache = app.add_subcommand("cache", "embed a training set once, for runs with a locked image tower");
  cache->add_option("--config", arguments.config, "the training configuration: a YAML file, or a shipped one's name")
      ->required();
  cache->add_option("--output", arguments.output,
                    "a new or empty folder, or an unfinished cache; default: image.cache");
  cache->add_option("--dtype", arguments.dtype, "of the stored features")
      ->check(CLI::IsMember({"fp16", "bf16", "fp32"}))
      ->capture_default_str();
  cache->add_option("--views", arguments.views, "training crops of each image; 1: the image as evaluation sees it")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  cache->add_option("--batch-size", arguments.batch_size, "images at a time; default: image.batch_size, or 64")
      ->check(CLI::Range(1, 65536));
  cache->add_option("--workers", arguments.workers, "decoding threads; default: data.workers")
      ->check(CLI::Range(1, 1024));
  cache->add_option("--part-rows", arguments.part_rows, "samples a part; a kill loses at most one part")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  cache->add_option("--on-bad-sample", arguments.on_bad_sample, "default: data.on_bad_sample")
      ->check(CLI::IsMember({"fail", "skip"}));
  cache->add_option("--precision", arguments.precision, "of the tower; default: the run's")
      ->check(CLI::IsMember({"fp32", "amp_bf16"}));
  cache->add_option("overrides", arguments.overrides, "key=value: settings that replace the configuration's");
  return cache;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Writes the embeddings of images or texts to a file, or those of a training set to a cache.",
               "clip_embed");
  app.require_subcommand(1);
  Arguments arguments;
  auto* images = app.add_subcommand("images", "embed images");
  add_options(*images, arguments, "a folder, a text file that names an image a line, or a list of shards");
  images->add_option("--on-bad-image", arguments.on_bad_image)
      ->check(CLI::IsMember({"fail", "skip"}))
      ->capture_default_str();
  auto* texts = app.add_subcommand("texts", "embed texts");
  add_options(*texts, arguments, "a text file with a text a line, or a list of shards with captions");
  texts->add_option("--caption-key", arguments.caption_key, "of shards: an extension, or json:FIELD")
      ->capture_default_str();
  texts->add_option("--on-bad-image", arguments.on_bad_image, "what happens at a sample without a usable caption")
      ->check(CLI::IsMember({"fail", "skip"}))
      ->capture_default_str();
  tools::CacheArguments cache_arguments;
  const auto* cache = add_cache_command(app, cache_arguments);
  return tools::run_program(app, argc, argv, [&] {
    return cache->parsed() ? tools::embed_cache(cache_arguments) : embed(arguments, images->parsed());
  });
}
