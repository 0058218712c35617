#include "contrastive/data/embedding_cache.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>
#include <utility>

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"

#include "data/embedding_cache_file.h"
#include "data/parallel.h"

namespace contrastive::data {
namespace {

namespace fs = std::filesystem;

std::string text_of(const fs::path& file) {
  try {
    return read_text_file(file);
  } catch (const Error& error) {
    throw DataError(error.what());
  }
}

detail::CacheManifest read_manifest(const fs::path& folder) {
  const auto file = folder / detail::kCacheFile;
  if (fs::exists(file)) return detail::manifest_from_text(text_of(file), file.string());
  if (fs::exists(folder / detail::kUnfinishedFile)) {
    throw DataError(fmt::format("[{}] is not complete: the command that makes this cache goes on when it is repeated",
                                folder.string()));
  }
  throw DataError(fmt::format("[{}] is no embedding cache: it has no {}", folder.string(), detail::kCacheFile));
}

template <typename T>
void copy_as_float(const void* row, std::span<float> out) {
  const auto* values = static_cast<const T*>(row);
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(values[i]);
}

/// A fingerprint as messages show it.
std::string shortened(const std::string& text) {
  constexpr size_t kShown = 12, kDigest = 64;
  const bool is_digest = text.size() == kDigest && text.find_first_not_of("0123456789abcdef") == text.npos;
  return is_digest ? fmt::format("sha256 {}...", text.substr(0, kShown)) : fmt::format("'{}'", text);
}

std::string shown(const std::array<float, 3>& values) {
  return fmt::format("({})", fmt::join(values, ", "));
}

const char* name_of(image::Interpolation interpolation) {
  switch (interpolation) {
    case image::Interpolation::nearest:
      return "nearest";
    case image::Interpolation::bilinear:
      return "bilinear";
    case image::Interpolation::bicubic:
      return "bicubic";
  }
  CONTRASTIVE_INTERNAL_ASSERT(false);
  return "";
}

const char* name_of(image::ResizeMode mode) {
  switch (mode) {
    case image::ResizeMode::shortest:
      return "shortest";
    case image::ResizeMode::longest:
      return "longest";
    case image::ResizeMode::squash:
      return "squash";
  }
  CONTRASTIVE_INTERNAL_ASSERT(false);
  return "";
}

/// "" unless pixels are approximated.
std::string decoding_of(const image::TrainCropOptions& crop) {
  if (crop.jpeg_scaling == image::JpegScaling::none) return "";
  return fmt::format(", JPEGs decoded at {} times the size or more", crop.jpeg_scaling_ratio);
}

std::string crop_in_words(const image::PreprocessSpec& spec, const image::TrainCropOptions& crop) {
  switch (crop.kind) {
    case image::TrainCrop::none: {
      auto text = fmt::format("resized ({}, {}{}) to {}", name_of(spec.resize_mode), name_of(spec.interpolation),
                              spec.antialias ? "" : ", no antialias", spec.size);
      if (spec.crop_fraction != 1) text += fmt::format(", the middle {} of it", spec.crop_fraction);
      if (spec.resize_mode == image::ResizeMode::longest) text += fmt::format(", filled with {}", spec.fill_color);
      return text;
    }
    case image::TrainCrop::random_square:
      return fmt::format("cropped (random_square{}) to {}", decoding_of(crop), spec.size);
    case image::TrainCrop::random_resized:
      return fmt::format("cropped (random_resized, {} to {} of the area{}) to {}", crop.scale_min, crop.scale_max,
                         decoding_of(crop), spec.size);
  }
  CONTRASTIVE_INTERNAL_ASSERT(false);
  return {};
}

}  // namespace

struct EmbeddingCache::Impl {
  explicit Impl(fs::path cache_folder) : folder(std::move(cache_folder)), manifest(read_manifest(folder)) {
    int64_t missing = 0;
    const auto& description = manifest.description;
    for (int64_t number = 0; number < detail::num_parts(description); ++number) {
      check_size(number);
      parts.push_back(std::make_unique<detail::CachePart>(folder, description, number));
      missing += parts.back()->num_missing();
    }
    if (missing == manifest.num_missing) return;
    throw DataError(fmt::format("[{}] says that {} samples are missing, but {} are",
                                (folder / detail::kCacheFile).string(), manifest.num_missing, missing));
  }

  fs::path part_file(int64_t number) const { return folder / detail::part_name(number); }

  void check_size(int64_t number) const {
    const auto file = part_file(number);
    const auto expected = manifest.parts[static_cast<size_t>(number)].bytes;
    std::error_code error;
    const auto bytes = fs::file_size(file, error);
    if (error) throw DataError(fmt::format("[{}] can't be read: {}", file.string(), error.message()));
    if (static_cast<int64_t>(bytes) == expected) return;
    throw DataError(fmt::format("[{}] has {} bytes, expected {}: it is damaged, or changed since it was written",
                                file.string(), bytes, expected));
  }

  /// Where a sample lies.
  struct Place {
    const detail::CachePart& part;
    int64_t row;
  };

  Place place_of(int64_t sample) const {
    const auto& description = manifest.description;
    if (sample < 0 || sample >= description.num_samples) {
      throw DataError(
          fmt::format("[{}] sample index {} is outside [0, {})", folder.string(), sample, description.num_samples));
    }
    return {*parts[static_cast<size_t>(sample / description.samples_per_part)], sample % description.samples_per_part};
  }

  fs::path folder;
  detail::CacheManifest manifest;
  std::vector<std::unique_ptr<const detail::CachePart>> parts;
};

EmbeddingCache::EmbeddingCache(fs::path folder) : impl_(std::make_unique<Impl>(std::move(folder))) {}

EmbeddingCache::~EmbeddingCache() = default;

const fs::path& EmbeddingCache::folder() const {
  return impl_->folder;
}

const CacheDescription& EmbeddingCache::description() const {
  return impl_->manifest.description;
}

int64_t EmbeddingCache::num_missing() const {
  return impl_->manifest.num_missing;
}

void EmbeddingCache::verify() const {
  const auto& files = impl_->manifest.parts;
  std::vector<std::string> found(files.size());
  detail::parallel_for(static_cast<int64_t>(files.size()), /*threads=*/0, [&](int64_t number) {
    found[static_cast<size_t>(number)] = sha256_hex_of_file(impl_->part_file(number));
  });
  std::vector<std::string> damaged;
  for (size_t i = 0; i < files.size(); ++i) {
    if (found[i] == files[i].sha256) continue;
    damaged.push_back(fmt::format("{} is {}, {} says {}", detail::part_name(static_cast<int64_t>(i)),
                                  shortened(found[i]), detail::kCacheFile, shortened(files[i].sha256)));
  }
  if (damaged.empty()) return;
  throw DataError(fmt::format("[{}] {} of {} files changed after they were written: {}", impl_->folder.string(),
                              damaged.size(), files.size(), fmt::join(damaged, "; ")));
}

std::string EmbeddingCache::key(int64_t sample) const {
  const auto [part, row] = impl_->place_of(sample);
  return std::string(part.key(row));
}

int64_t EmbeddingCache::num_captions(int64_t sample) const {
  const auto [part, row] = impl_->place_of(sample);
  return part.num_captions(row);
}

void EmbeddingCache::require_present(int64_t sample) const {
  const auto [part, row] = impl_->place_of(sample);
  const auto place = part.find_missing(row);
  if (place < 0) return;
  auto missing = part.missing(place);
  throw BadSampleError(std::move(missing.reason), missing.message);
}

void EmbeddingCache::read_features(int64_t sample, int64_t view, std::span<float> out) const {
  const auto& description = impl_->manifest.description;
  CONTRASTIVE_INTERNAL_ASSERT(static_cast<int64_t>(out.size()) == description.feature_width);
  CONTRASTIVE_INTERNAL_ASSERT(view >= 0 && view < description.num_views);
  const auto [part, row] = impl_->place_of(sample);
  const auto* values = part.features(row, view);
  switch (description.dtype) {
    case torch::kHalf:
      return copy_as_float<c10::Half>(values, out);
    case torch::kBFloat16:
      return copy_as_float<c10::BFloat16>(values, out);
    default:
      return copy_as_float<float>(values, out);
  }
}

int64_t EmbeddingCache::read_tokens(int64_t sample, int64_t caption, std::span<int32_t> out) const {
  CONTRASTIVE_INTERNAL_ASSERT(static_cast<int64_t>(out.size()) == description().context_length);
  const auto [part, row] = impl_->place_of(sample);
  CONTRASTIVE_INTERNAL_ASSERT(caption >= 0 && caption < part.num_captions(row));
  std::copy_n(part.tokens(row, caption), out.size(), out.begin());
  return part.length(row, caption);
}

EmbeddingCacheSource::EmbeddingCacheSource(std::shared_ptr<const EmbeddingCache> cache) : cache_(std::move(cache)) {
  CONTRASTIVE_INTERNAL_ASSERT(cache_ != nullptr);
}

void EmbeddingCacheSource::read(int64_t index, RandomStream& random, Sample& sample) const {
  read_view(index, 0, random, sample);
}

void EmbeddingCacheSource::read_view(int64_t index, int64_t view, RandomStream& random, Sample& sample) const {
  cache_->require_present(index);
  const auto captions = cache_->num_captions(index);
  const auto choice = captions == 1 ? 0 : random.below(captions);  // the draw of WebdatasetSource::read
  const auto& description = cache_->description();
  sample.encoded.clear();
  sample.drawn = {};
  sample.caption.clear();
  sample.label = -1;
  sample.tokens.resize(static_cast<size_t>(description.context_length));
  sample.num_tokens = cache_->read_tokens(index, choice, sample.tokens);
  sample.features.resize(static_cast<size_t>(description.feature_width));
  cache_->read_features(index, view, sample.features);
}

std::string EmbeddingCacheSource::describe(int64_t index) const {
  return fmt::format("[{}] sample {}", cache_->folder().string(), key(index));
}

void require_matching_cache(const EmbeddingCache& cache, const ExpectedCache& expected) {
  const auto& made = cache.description();
  std::vector<std::string> found;
  const auto compare = [&](const char* what, const std::string& of_cache, const std::string& of_run) {
    if (of_run.empty() || of_cache == of_run) return;
    found.push_back(fmt::format("{}: {}, the run's is {}", what, shortened(of_cache), shortened(of_run)));
  };
  const auto compare_count = [&](const char* what, int64_t of_cache, int64_t of_run) {
    if (of_run == 0 || of_cache == of_run) return;
    found.push_back(fmt::format("{}: {}, the run's is {}", what, of_cache, of_run));
  };
  compare("other weights of the image tower", made.tower, expected.tower);
  compare_count("another width of the features", made.feature_width, expected.feature_width);
  compare("other preprocessing", made.preprocessing, expected.preprocessing);
  compare("other training data", made.data, expected.data);
  compare_count("another number of samples", made.num_samples, expected.num_samples);
  compare("other images or captions of the samples", made.data_settings, expected.data_settings);
  compare("another tokenizer", made.tokenizer, expected.tokenizer);
  compare_count("another context length", made.context_length, expected.context_length);
  if (found.empty()) return;
  throw ConfigError(fmt::format("image.cache: [{}] ({}, computed in {}) was made with {}", cache.folder().string(),
                                detail::dtype_name(made.dtype), made.precision, fmt::join(found, "; ")));
}

std::string cached_preprocessing(const image::PreprocessSpec& spec, const image::TrainCropOptions& crop) {
  return fmt::format("{}, mean {}, std {}", crop_in_words(spec, crop), shown(spec.mean), shown(spec.std));
}

std::string tokenizer_fingerprint(const text::Tokenizer& tokenizer, int64_t context_length) {
  // Case, accents, digits, punctuation, HTML, other scripts, white space, and a text that no row has room for.
  static const std::vector<std::string_view> kTexts{
      "A photo of a Dog.",
      "it's the 3rd of 1,024 \"quoted\" words; don't_join-them!?",
      "caf\xc3\xa9 na\xc3\xafve \xc3\x85ngstr\xc3\xb6m e\xcc\x81",
      "&lt;b&gt; &amp;amp; <br> http://example.org/a?b=c",
      "  two   spaces\tand\na line ",
      "\xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e \xd0\xbc\xd0\xb8\xd1\x80 \xf0\x9f\x98\x80 \xef\xac\x81",
      ""};
  std::string text = fmt::format("{} {}\n", tokenizer.vocab_size(), context_length);
  std::string longest;
  while (static_cast<int64_t>(longest.size()) < 8 * context_length) longest += "one more word ";
  std::vector<int32_t> row(static_cast<size_t>(context_length));
  const auto add = [&](std::string_view sample) {
    const auto length = tokenizer.tokenize(sample, row);
    text += fmt::format("{}: {}\n", length, fmt::join(row, " "));
  };
  for (const auto& sample : kTexts) add(sample);
  add(longest);
  for (int64_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const auto number = static_cast<int32_t>(id);
    text += tokenizer.decode({&number, 1}) + "\n";
  }
  return sha256_hex({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

}  // namespace contrastive::data
