#include <algorithm>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "contrastive/adapt/support_builders.h"
#include "contrastive/core/error.h"
#include "contrastive/core/random.h"
#include "contrastive/data/source.h"
#include "contrastive/eval/few_shot.h"

namespace contrastive::adapt {
namespace {

void mirror(image::Image& image) {
  for (int64_t y = 0; y < image.height; ++y) {
    auto* row = image.row(y);
    for (int64_t left = 0, right = image.width - 1; left < right; ++left, --right) {
      std::swap_ranges(row + 3 * left, row + 3 * left + 3, row + 3 * right);
    }
  }
}

/// Views of chosen samples, one after the other: random crops, or the image itself where there is one view.
class ChosenViews : public data::SampleSource {
 public:
  ChosenViews(const data::SampleSource& source, std::vector<int64_t> chosen, int64_t image_size,
              const FromSplitOptions& options)
      : source_(source), chosen_(std::move(chosen)), image_size_(image_size), options_(options) {}

  int64_t size() const override { return static_cast<int64_t>(chosen_.size()) * options_.views; }
  std::string describe(int64_t index) const override { return source_.describe(sample_of(index)); }
  std::string fingerprint() const override { return source_.fingerprint(); }

  void read(int64_t index, RandomStream& random, data::Sample& sample) const override {
    source_.read(sample_of(index), random, sample);
    if (options_.views == 1) return;
    RandomStream own(static_cast<uint64_t>(options_.seed), RandomPurpose::view_crop,
                     {sample_of(index), index % options_.views});
    image::TrainCropOptions crop;
    crop.scale_min = options_.crop_scale_min;
    image::Image square;
    square.width = square.height = image_size_;
    square.pixels.resize(static_cast<size_t>(3 * image_size_ * image_size_));
    const std::span<uint8_t> out(square.pixels.data(), square.pixels.size());
    if (sample.encoded.empty()) {
      image::crop_for_training(sample.drawn, image_size_, crop, own, out);
    } else {
      image::decode_for_training(sample.encoded, image_size_, crop, own, out);
      sample.encoded.clear();
    }
    if (own.uniform() < options_.flip) mirror(square);
    sample.drawn = std::move(square);
  }

 private:
  int64_t sample_of(int64_t index) const { return chosen_[static_cast<size_t>(index / options_.views)]; }

  const data::SampleSource& source_;
  std::vector<int64_t> chosen_;
  int64_t image_size_;
  const FromSplitOptions& options_;
};

void check(const FromSplitOptions& options) {
  if (options.shots < 1)
    throw ConfigError(fmt::format("[from-split] shots must be at least 1, but is {}", options.shots));
  if (options.views < 1)
    throw ConfigError(fmt::format("[from-split] views must be at least 1, but is {}", options.views));
  if (!(options.crop_scale_min > 0 && options.crop_scale_min <= 1)) {
    throw ConfigError(fmt::format("[from-split] crop_scale_min must be in (0, 1], but is {}", options.crop_scale_min));
  }
  if (!(options.flip >= 0 && options.flip <= 1)) {
    throw ConfigError(fmt::format("[from-split] flip must be in [0, 1], but is {}", options.flip));
  }
}

void require_every_class(const torch::Tensor& labels, const data::ClassificationSet& set) {
  const auto counts = at::bincount(labels, {}, static_cast<int64_t>(set.class_names.size()));
  const auto empty = counts.eq(0).nonzero().flatten();
  if (empty.numel() == 0) return;
  throw DataError(fmt::format("[from-split] {} of {} classes of {} have no sample, the first is \"{}\"", empty.numel(),
                              set.class_names.size(), set.name,
                              set.class_names[static_cast<size_t>(empty[0].item<int64_t>())]));
}

torch::Tensor normalized(const torch::Tensor& rows) {
  return rows / rows.norm(2, -1, /*keepdim=*/true);
}

/// What is preprocessed already stays as it is.
image::PreprocessSpec without_crop(image::PreprocessSpec spec) {
  spec.crop_fraction = 1;
  spec.antialias = true;
  spec.resize_mode = image::ResizeMode::shortest;
  return spec;
}

}  // namespace

SupportSet support_from_split(models::ClipModel& model, const image::PreprocessSpec& preprocess,
                              const data::ClassificationSet& train, const FromSplitOptions& options,
                              const distributed::ProcessGroup& group) {
  check(options);
  const auto labels = eval::read_labels(train);
  require_every_class(labels, train);
  const auto num_classes = static_cast<int64_t>(train.class_names.size());
  const auto drawn = eval::draw_shots(labels, num_classes, options.shots, options.seed);
  const std::vector<int64_t> chosen(drawn.const_data_ptr<int64_t>(), drawn.const_data_ptr<int64_t>() + drawn.numel());
  const ChosenViews views(*train.source, chosen, preprocess.size, options);
  auto pass = options.pass;
  pass.stage = eval::FeatureStage::projection;
  pass.skip_bad_samples = false;
  const auto spec = options.views == 1 ? preprocess : without_crop(preprocess);
  const auto features = eval::collect_features(model, spec, views, 0, views.size(), pass, group)
                            .features.reshape({drawn.numel(), options.views, -1});  // [M, V, D]

  SupportSet set;
  const auto rows = labels.index_select(0, drawn);
  set.features = SupportFeatures{normalized(features.mean(1)), rows, num_classes,
                                 options.views > 1 ? normalized(features) : torch::Tensor()};
  for (const auto sample : chosen) {
    SupportSource source;
    source.data = train.name;
    source.key = train.source->key(sample);
    set.rows.push_back(std::move(source));
  }
  set.class_names = train.class_names;
  set.class_ids = train.class_ids;
  set.made_by = {{"builder", "from-split"},
                 {"shots", fmt::format("{}", options.shots)},
                 {"seed", fmt::format("{}", options.seed)},
                 {"views", fmt::format("{}", options.views)}};
  if (options.views > 1) {
    set.made_by["crop_scale_min"] = fmt::format("{}", options.crop_scale_min);
    set.made_by["flip"] = fmt::format("{}", options.flip);
  }
  set.features.check();
  return set;
}

}  // namespace contrastive::adapt
