#include "contrastive/train/training_data.h"

#include <filesystem>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"
#include "contrastive/data/shard_list.h"
#include "contrastive/data/synthetic.h"
#include "contrastive/data/webdataset_source.h"
#include "contrastive/eval/tower_source.h"

namespace contrastive::train {
namespace {

namespace fs = std::filesystem;

/// Collects what isn't there.
class MissingInputs {
 public:
  explicit MissingInputs(const RunOptions& options) : options_(options) {}

  void need(const char* key, const fs::path& path) {
    if (!fs::exists(path)) add(key, path.string());
  }

  void add(const char* key, const std::string& what) {
    const auto* hint = options_.where_to_get.find(key);
    lines_.push_back(
        fmt::format("  {}: {}{}", key, what, hint == nullptr || hint->scalar.empty() ? "" : "\n    " + hint->scalar));
  }

  void throw_if_any() const {
    if (lines_.empty()) return;
    throw ConfigError(
        fmt::format("run '{}' needs what is not there:\n{}\nGive other places on the command line, as "
                    "{}=PATH",
                    options_.name, fmt::join(lines_, "\n"), first_key()));
  }

 private:
  std::string first_key() const {
    const auto& line = lines_.front();
    return line.substr(2, line.find(':') - 2);
  }

  const RunOptions& options_;
  std::vector<std::string> lines_;
};

void need_shards(const std::string& list, MissingInputs& missing) {
  try {
    data::require_shards_exist(data::expand_shard_list(list));
  } catch (const DataError& error) {
    missing.add("data.train", error.what());
  }
}

}  // namespace

std::shared_ptr<const data::SampleSource> open_sample_source(const DataOptions& options) {
  if (options.train == "synthetic") {
    return std::make_shared<data::SyntheticSource>(data::SyntheticOptions{.seed = options.synthetic.seed,
                                                                          .samples = options.synthetic.samples,
                                                                          .image_size = options.synthetic.image_size});
  }
  const auto shards = data::expand_shard_list(options.train);
  data::require_shards_exist(shards);
  data::WebdatasetOptions source_options;
  source_options.image_keys = options.image_keys;
  source_options.caption_key = options.caption_key;
  return std::make_shared<data::WebdatasetSource>(data::ShardIndex::open(shards), source_options);
}

image::TrainCropOptions crop_options(const RunOptions& options, const image::PreprocessSpec& evaluation) {
  const auto& crop = options.data.crop;
  image::TrainCropOptions result;
  result.kind = crop.kind == "none"            ? image::TrainCrop::none
                : crop.kind == "random_square" ? image::TrainCrop::random_square
                                               : image::TrainCrop::random_resized;
  result.scale_min = crop.scale_min;
  result.scale_max = crop.scale_max;
  result.evaluation = evaluation;
  result.jpeg_scaling = crop.jpeg_scaling == "dct" ? image::JpegScaling::dct : image::JpegScaling::none;
  result.jpeg_scaling_ratio = crop.jpeg_scaling_ratio;
  return result;
}

fs::path tokenizer_origin(const RunOptions& options) {
  auto origin = !options.tokenizer.empty()         ? fs::path(options.tokenizer)
                : !options.text.checkpoint.empty() ? eval::parse_tower_location(options.text.checkpoint).path
                                                   : fs::path(options.weights);
  const bool is_place = fs::is_directory(origin) || origin.extension() == ".npz";
  return is_place ? origin : origin.parent_path();
}

void require_inputs(const RunOptions& options, bool resumes) {
  MissingInputs missing(options);
  const bool is_cached = !options.image.cache.empty();
  const auto need_tower = [&](const char* key, const std::string& location) {
    if (!location.empty()) missing.need(key, eval::parse_tower_location(location).path);
  };
  if (!resumes || is_cached) {
    if (!options.weights.empty()) missing.need("weights", options.weights);
    need_tower("image.checkpoint", options.image.checkpoint);
  }
  if (!resumes) {
    need_tower("text.checkpoint", options.text.checkpoint);
    if (!options.tokenizer.empty()) missing.need("tokenizer", options.tokenizer);
  }
  if (is_cached && !fs::exists(fs::path(options.image.cache) / "cache.json")) {
    const bool has_begun = fs::exists(options.image.cache);
    missing.add("image.cache",
                options.image.cache + (has_begun ? " is not complete: repeat clip_embed cache --config FILE"
                                                 : " (made by clip_embed cache --config FILE)"));
  }
  if (options.data.train != "synthetic" && !is_cached) need_shards(options.data.train, missing);
  const auto& test = options.eval.zero_shot.data;
  if (!test.empty() && test != "synthetic") missing.need("eval.zero_shot.data", test);
  if (!options.eval.suite.empty()) missing.need("eval.suite", options.eval.suite);
  missing.throw_if_any();
}

}  // namespace contrastive::train
