#include "contrastive/eval/preprocess_config.h"

#include <array>
#include <charconv>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/options.h"

namespace contrastive::eval {
namespace {

using image::Interpolation;
using image::PreprocessSpec;
using image::ResizeMode;

constexpr double kSmallestCropFraction = 0.05;

/// preprocess_cfg as open_clip writes it: also with keys that say what the model's config says.
struct PreprocessFields {
  std::vector<double> mean;
  std::vector<double> std;
  std::string interpolation = "bicubic";
  std::string resize_mode = "shortest";
  int64_t fill_color = 0;
  std::string mode = "RGB";
  ConfigNode size;
  bool antialias = true;
  double crop_fraction = 1.0;

  template <typename Fields>
  void fields(Fields& f) {
    f("mean", mean);
    f("std", std);
    f("interpolation", interpolation, one_of({"bicubic", "bilinear", "nearest"}));
    f("resize_mode", resize_mode, one_of({"shortest", "longest", "squash"}));
    f("fill_color", fill_color, between(0, 255));
    f("mode", mode, one_of({"RGB"}));
    f("size", size);
    f("antialias", antialias);
    f("crop_fraction", crop_fraction, between(kSmallestCropFraction, 1));
  }

  void validate(const OptionScope& scope) const {
    if (!mean.empty() && mean.size() != 3) scope.fail("mean", "expected three numbers");
    if (!std.empty() && std.size() != 3) scope.fail("std", "expected three numbers");
    for (const double value : std) {
      if (value <= 0) scope.fail("std", "must be greater than 0");
    }
    const bool is_longest = resize_mode == "longest";
    if (!antialias && interpolation != "bilinear") scope.fail("antialias", "false needs interpolation bilinear");
    if (!antialias && is_longest) scope.fail("antialias", "false needs resize_mode shortest or squash");
    if (crop_fraction < 1 && is_longest) scope.fail("crop_fraction", "needs resize_mode shortest or squash");
  }
};

void copy_three(const std::vector<double>& from, std::array<float, 3>& to) {
  for (size_t i = 0; i < from.size(); ++i) to[i] = static_cast<float>(from[i]);
}

ConfigNode three_numbers(const std::array<float, 3>& values) {
  std::vector<ConfigNode> items;
  for (const float value : values) items.push_back(ConfigNode::make_scalar(fmt::format("{}", value)));
  return ConfigNode::make_sequence(std::move(items));
}

const char* name_of(Interpolation interpolation) {
  switch (interpolation) {
    case Interpolation::nearest:
      return "nearest";
    case Interpolation::bilinear:
      return "bilinear";
    case Interpolation::bicubic:
      return "bicubic";
  }
  return "";
}

const char* name_of(ResizeMode mode) {
  switch (mode) {
    case ResizeMode::shortest:
      return "shortest";
    case ResizeMode::longest:
      return "longest";
    case ResizeMode::squash:
      return "squash";
  }
  return "";
}

/// PIL's numbers of the resampling filters.
Interpolation interpolation_of(int64_t resample, const ConfigNode& node) {
  if (resample == 0) return Interpolation::nearest;
  if (resample == 2) return Interpolation::bilinear;
  if (resample == 3) return Interpolation::bicubic;
  throw ConfigError(fmt::format("{}: resample: expected 0, 2 or 3 (nearest, bilinear, bicubic), found {}",
                                node.place.to_string(), resample));
}

/// `size` as transformers writes it: a number, {shortest_edge: N} or {height: H, width: W}.
struct HfSize {
  int64_t pixels = 0;
  bool is_square = false;
};

/// preprocessor_config.json, as far as it says what happens to an image.
class HfPreprocessReader {
 public:
  explicit HfPreprocessReader(const ConfigNode& node) : node_(node) {}

  PreprocessSpec read(int64_t image_size) const {
    PreprocessSpec spec;
    spec.size = image_size;
    read_three("image_mean", spec.mean);
    read_three("image_std", spec.std);
    if (const auto* resample = node_.find("resample")) spec.interpolation = interpolation_of(integer(*resample), node_);
    const auto* size_node = node_.find("size");
    const auto size = size_node != nullptr ? read_size(*size_node) : HfSize{image_size, false};
    const auto* crop = node_.find("do_center_crop");
    const bool crops = crop == nullptr ? !size.is_square : crop->scalar == "true";
    spec.resize_mode = crops ? ResizeMode::shortest : ResizeMode::squash;
    const bool is_supported = size.pixels == image_size && (crops != size.is_square);
    if (!is_supported) {
      throw ConfigError(fmt::format(
          "{}: size: expected the shorter edge and a centre crop, or height and width without one, of the model's {} "
          "pixels; other preprocessing of transformers is not supported",
          node_.place.to_string(), image_size));
    }
    return spec;
  }

 private:
  static int64_t integer(const ConfigNode& node) {
    int64_t value = -1;
    const auto& text = node.scalar;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    const bool is_whole =
        node.kind == ConfigNode::Kind::scalar && error == std::errc() && end == text.data() + text.size();
    if (is_whole) return value;
    throw ConfigError(fmt::format("{}: expected an integer, found {}", node.place.to_string(), to_json(node, -1)));
  }

  HfSize read_size(const ConfigNode& node) const {
    if (node.kind != ConfigNode::Kind::map) return {integer(node), false};
    if (const auto* edge = node.find("shortest_edge")) return {integer(*edge), false};
    const auto *height = node.find("height"), *width = node.find("width");
    if (height != nullptr && width != nullptr && integer(*height) == integer(*width)) return {integer(*width), true};
    throw ConfigError(fmt::format("{}: size: expected shortest_edge, or height and width that are equal, found {}",
                                  node.place.to_string(), to_json(node, -1)));
  }

  void read_three(const char* key, std::array<float, 3>& values) const {
    const auto* list = node_.find(key);
    if (list == nullptr) return;
    const auto fail = [&] {
      throw ConfigError(
          fmt::format("{}: {}: expected three numbers, found {}", list->place.to_string(), key, to_json(*list, -1)));
    };
    if (list->items.size() != values.size()) fail();
    for (size_t i = 0; i < values.size(); ++i) {
      const auto& text = list->items[i].scalar;
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), values[i]);
      if (text.empty() || error != std::errc() || end != text.data() + text.size()) fail();
    }
  }

  const ConfigNode& node_;
};

}  // namespace

ConfigNode to_node(const PreprocessSpec& preprocess) {
  auto node = ConfigNode::make_map();
  node.add("mean", three_numbers(preprocess.mean));
  node.add("std", three_numbers(preprocess.std));
  node.add("interpolation", ConfigNode::make_scalar(name_of(preprocess.interpolation)));
  node.add("resize_mode", ConfigNode::make_scalar(name_of(preprocess.resize_mode)));
  if (preprocess.fill_color != 0) {
    node.add("fill_color", ConfigNode::make_scalar(std::to_string(preprocess.fill_color)));
  }
  if (!preprocess.antialias) node.add("antialias", ConfigNode::make_scalar("false"));
  if (preprocess.crop_fraction != 1) {
    node.add("crop_fraction", ConfigNode::make_scalar(fmt::format("{}", preprocess.crop_fraction)));
  }
  return node;
}

PreprocessSpec load_preprocess(const ConfigNode& node, int64_t image_size) {
  const auto fields = read_options<PreprocessFields>(node);
  PreprocessSpec spec;
  spec.size = image_size;
  copy_three(fields.mean, spec.mean);
  copy_three(fields.std, spec.std);
  for (const auto value : {Interpolation::nearest, Interpolation::bilinear, Interpolation::bicubic}) {
    if (fields.interpolation == name_of(value)) spec.interpolation = value;
  }
  for (const auto value : {ResizeMode::shortest, ResizeMode::longest, ResizeMode::squash}) {
    if (fields.resize_mode == name_of(value)) spec.resize_mode = value;
  }
  spec.fill_color = static_cast<uint8_t>(fields.fill_color);
  spec.antialias = fields.antialias;
  spec.crop_fraction = fields.crop_fraction;
  return spec;
}

PreprocessSpec load_hf_preprocess(const ConfigNode& node, int64_t image_size) {
  return HfPreprocessReader(node).read(image_size);
}

ConfigNode to_hf_preprocess(const PreprocessSpec& preprocess) {
  if (preprocess.resize_mode == ResizeMode::longest) {
    throw ConfigError("[convert] transformers' CLIPImageProcessor has no resize_mode longest");
  }
  if (!preprocess.antialias) throw ConfigError("[convert] transformers' CLIPImageProcessor has no antialias false");
  if (preprocess.crop_fraction != 1) {
    throw ConfigError("[convert] crop_fraction is not supported in preprocessor_config.json");
  }
  const auto scalar = [](const std::string& text) { return ConfigNode::make_scalar(text); };
  const auto size = scalar(std::to_string(preprocess.size));
  const bool crops = preprocess.resize_mode == ResizeMode::shortest;
  auto square = ConfigNode::make_map();
  square.add("height", size);
  square.add("width", size);
  auto edge = ConfigNode::make_map();
  edge.add("shortest_edge", size);
  constexpr int kFilters[] = {0, 2, 3};
  auto node = ConfigNode::make_map();
  node.add("image_processor_type", scalar("CLIPImageProcessor"));
  node.add("do_convert_rgb", scalar("true"));
  node.add("do_resize", scalar("true"));
  node.add("size", crops ? edge : square);
  node.add("resample", scalar(std::to_string(kFilters[static_cast<int>(preprocess.interpolation)])));
  node.add("do_center_crop", scalar(crops ? "true" : "false"));
  node.add("crop_size", square);
  node.add("do_rescale", scalar("true"));
  node.add("rescale_factor", scalar("0.00392156862745098"));  // 1 / 255
  node.add("do_normalize", scalar("true"));
  node.add("image_mean", three_numbers(preprocess.mean));
  node.add("image_std", three_numbers(preprocess.std));
  return node;
}

}  // namespace contrastive::eval
