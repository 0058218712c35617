#include "contrastive/eval/encoder.h"

#include <algorithm>
#include <thread>
#include <utility>

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <fmt/format.h>
#include <torch/utils.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/data/evaluation_loader.h"
#include "contrastive/data/normalize.h"
#include "contrastive/models/precision.h"

#include "eval/fingerprint.h"
#include "eval/pipeline.h"

namespace contrastive::eval {
namespace {

namespace fs = std::filesystem;
using detail::pipeline;

constexpr int64_t kMaxFileBytes = int64_t{256} << 20;
/// The labels that images carry through the loader.
constexpr int64_t kGood = 0;
constexpr int64_t kFailed = 1;

/// Images of one call. One that can't be read is thrown, or noted and replaced by a black one.
class ImageSource : public data::SampleSource {
 public:
  ImageSource(int64_t size, const image::DecodeLimits& limits, bool note_failures)
      : limits_(limits), note_failures_(note_failures), reasons_(static_cast<size_t>(note_failures ? size : 0)) {}

  void read(int64_t index, RandomStream& random, data::Sample& sample) const override {
    try {
      sample.drawn = load(index, random, sample);
      sample.label = kGood;
    } catch (const Error& error) {
      if (!note_failures_) throw DataError(error.what());
      reasons_[static_cast<size_t>(index)] = error.what();
      sample.label = kFailed;
      sample.drawn = {1, 1, image::PixelMode::rgb, {0, 0, 0}, {}};
    }
  }

  /// Nothing is resumed over these.
  std::string fingerprint() const override { return {}; }

  std::vector<ImageFailure> failures() const {
    std::vector<ImageFailure> failures;
    for (size_t i = 0; i < reasons_.size(); ++i) {
      const auto index = static_cast<int64_t>(i);
      if (!reasons_[i].empty()) failures.push_back({index, describe(index), reasons_[i]});
    }
    return failures;
  }

 protected:
  /// May use the sample's memory.
  virtual image::Image load(int64_t index, RandomStream& random, data::Sample& sample) const = 0;

  image::DecodeLimits limits_;

 private:
  bool note_failures_;
  mutable std::vector<std::string> reasons_;  ///< each written by the one thread that reads its image
};

class FileSource : public ImageSource {
 public:
  FileSource(std::span<const fs::path> files, const image::DecodeLimits& limits, bool note_failures)
      : ImageSource(static_cast<int64_t>(files.size()), limits, note_failures), files_(files) {}

  int64_t size() const override { return static_cast<int64_t>(files_.size()); }
  std::string describe(int64_t index) const override { return fmt::format("[{}]", file(index).string()); }

 protected:
  image::Image load(int64_t index, RandomStream&, data::Sample&) const override {
    std::error_code error;
    const auto status = fs::status(file(index), error);
    if (!fs::exists(status)) throw DataError("the file does not exist");
    if (!fs::is_regular_file(status)) throw DataError("it is not a regular file");
    const auto content = read_text_file(file(index), kMaxFileBytes);
    return image::decode_image({reinterpret_cast<const uint8_t*>(content.data()), content.size()}, limits_);
  }

 private:
  const fs::path& file(int64_t index) const { return files_[static_cast<size_t>(index)]; }

  std::span<const fs::path> files_;
};

class BytesSource : public ImageSource {
 public:
  BytesSource(std::span<const std::span<const uint8_t>> images, const image::DecodeLimits& limits, bool note_failures)
      : ImageSource(static_cast<int64_t>(images.size()), limits, note_failures), images_(images) {}

  int64_t size() const override { return static_cast<int64_t>(images_.size()); }
  std::string describe(int64_t index) const override { return fmt::format("image {}", index); }

 protected:
  image::Image load(int64_t index, RandomStream&, data::Sample&) const override {
    return image::decode_image(images_[static_cast<size_t>(index)], limits_);
  }

 private:
  std::span<const std::span<const uint8_t>> images_;
};

/// A part of another source.
class PartSource : public ImageSource {
 public:
  PartSource(const data::SampleSource& source, int64_t begin, int64_t end, const image::DecodeLimits& limits)
      : ImageSource(end - begin, limits, /*note_failures=*/true), source_(source), begin_(begin), end_(end) {}

  int64_t size() const override { return end_ - begin_; }
  std::string describe(int64_t index) const override { return source_.describe(begin_ + index); }

 protected:
  image::Image load(int64_t index, RandomStream& random, data::Sample& sample) const override {
    source_.read(begin_ + index, random, sample);
    return sample.drawn.pixels.empty() ? image::decode_image(sample.encoded, limits_) : std::move(sample.drawn);
  }

 private:
  const data::SampleSource& source_;
  int64_t begin_;
  int64_t end_;
};

int64_t num_batches(int64_t items, int64_t batch_size) {
  return (items + batch_size - 1) / batch_size;
}

int64_t thread_count(int64_t wanted, int64_t items) {
  if (wanted == 0) wanted = std::min<int64_t>(16, std::thread::hardware_concurrency());
  return std::clamp<int64_t>(wanted, 1, std::max<int64_t>(items, 1));
}

/// Throws: ConfigError if an option is out of range, or the device isn't there.
torch::Device checked_device(const EncoderOptions& options) {
  const auto require = [](const char* name, int64_t value, int64_t minimum, int64_t maximum) {
    if (value >= minimum && value <= maximum) return;
    throw ConfigError(fmt::format("[encoder] {} must be in [{}, {}], but is {}", name, minimum, maximum, value));
  };
  require("batch_size", options.batch_size, 1, 1 << 16);
  require("threads", options.threads, 0, 1 << 10);
  const auto device = options.device.value_or(at::hasCUDA() ? torch::kCUDA : torch::kCPU);
  if (device.is_cuda() && !at::hasCUDA()) {
    throw ConfigError("[encoder] device cuda was asked for, but no CUDA device can be used");
  }
  return device;
}

/// In place of a tokenizer that could not be opened: says why when it is needed.
class MissingTokenizer : public text::Tokenizer {
 public:
  explicit MissingTokenizer(std::string reason) : reason_(std::move(reason)) {}

  int64_t tokenize(std::string_view, std::span<int32_t>, bool) const override { fail(); }
  std::vector<int32_t> encode(std::string_view) const override { fail(); }
  std::string decode(std::span<const int32_t>) const override { fail(); }
  int64_t vocab_size() const override { fail(); }

 private:
  [[noreturn]] void fail() const { throw ConfigError(reason_); }

  std::string reason_;
};

std::shared_ptr<const text::Tokenizer> tokenizer_of(const LoadedModel& loaded) {
  try {
    return open_tokenizer(loaded.model->config(), loaded.folder);
  } catch (const ConfigError& error) {
    return std::make_shared<MissingTokenizer>(error.what());
  }
}

}  // namespace

struct Encoder::Parts {
  models::ClipModel model{nullptr};
  image::PreprocessSpec preprocess;
  std::shared_ptr<const text::Tokenizer> tokenizer;
  EncoderOptions options;
  torch::Device device{torch::kCPU};
  double logit_scale = 1;
  std::optional<double> logit_bias;
  std::shared_ptr<const models::PackedWeights> packed;  ///< the model's, on the CPU

  torch::Tensor finish(const torch::Tensor& features) const {
    return (options.normalize ? models::l2_normalize(features) : features.to(at::kFloat)).cpu();
  }

  torch::Tensor encode_pixels(const torch::Tensor& pixels, bool places = false) const {
    const torch::NoGradGuard no_grad;
    auto own = model;  // a handle: forward passes are not const
    return detail::encode_in_parts(pixels, device, [&](const torch::Tensor& part) {
      const auto images = data::normalize_images(part, preprocess.mean, preprocess.std, device);
      const models::AutocastGuard autocast(device.type(), options.bf16);
      return finish(places ? own->encode_places(images) : own->encode_image(images));
    });
  }

  torch::Tensor encode_tokens(const torch::Tensor& tokens) const {
    const torch::NoGradGuard no_grad;
    auto own = model;
    const models::AutocastGuard autocast(device.type(), options.bf16);
    return finish(own->encode_text(tokens.to(device)));
  }

  torch::Tensor tokenize(std::span<const std::string> texts) const;
  EncodedImages encode(const ImageSource& source, bool places = false) const;
  torch::Tensor concatenate(const std::vector<torch::Tensor>& rows) const;
};

/// Shapes: [N, T], T the longest text where what follows the end token can't matter, else the context length.
torch::Tensor Encoder::Parts::tokenize(std::span<const std::string> texts) const {
  const auto& config = model->config().text_cfg;
  auto rows = at::empty({static_cast<int64_t>(texts.size()), config.context_length}, at::kInt);
  auto* row = rows.data_ptr<int32_t>();
  int64_t longest = 1;
  for (const auto& text : texts) {
    const std::span<int32_t> ids(row, static_cast<size_t>(config.context_length));
    longest = std::max(longest, tokenizer->tokenize(text, ids, options.truncate_texts));
    row += config.context_length;
  }
  const bool can_be_cut = (config.pool_type == "argmax" || config.pool_type == "eos") && !config.no_causal_mask;
  return rows.narrow(1, 0, can_be_cut ? longest : config.context_length).to(at::kLong);
}

EncodedImages Encoder::Parts::encode(const ImageSource& source, bool places) const {
  std::vector<torch::Tensor> rows;
  const auto size = source.size();
  if (size > 0) {
    const auto batch_size = std::min(size, options.batch_size);
    data::EvaluationLoader loader(source, preprocess, batch_size, thread_count(options.threads, batch_size));
    detail::run_batches(
        num_batches(size, batch_size), device, [&](int64_t) { return loader.next().value(); },
        [&](const data::LabelledBatch& batch) {
          const auto failed = batch.labels.eq(kFailed).nonzero().flatten();
          rows.push_back(encode_pixels(batch.images, places).index_fill_(0, failed, 0));
        });
  }
  return {concatenate(rows), source.failures()};
}

torch::Tensor Encoder::Parts::concatenate(const std::vector<torch::Tensor>& rows) const {
  return rows.empty() ? at::empty({0, model->config().embed_dim}) : at::cat(rows);
}

Encoder Encoder::open(const fs::path& path, const EncoderOptions& options) {
  CheckpointRequest request;
  request.path = path;
  return open(request, options);
}

Encoder Encoder::open(const CheckpointRequest& request, const EncoderOptions& options) {
  auto loaded = load_model(request);
  auto tokenizer = tokenizer_of(loaded);
  return Encoder(std::move(loaded), std::move(tokenizer), options);
}

Encoder::Encoder(LoadedModel model, std::shared_ptr<const text::Tokenizer> tokenizer, const EncoderOptions& options) {
  auto parts = std::make_shared<Parts>();
  parts->options = options;
  parts->device = checked_device(options);
  model.model->to(parts->device);
  model.model->eval();
  for (const auto& parameter : model.model->named_parameters(/*recurse=*/false)) {
    if (parameter.key() == "logit_scale") parts->logit_scale = parameter->exp().item<double>();
    if (parameter.key() == "logit_bias") parts->logit_bias = parameter->item<double>();
  }
  parts->model = std::move(model.model);
  if (parts->device.is_cpu()) parts->packed = std::make_shared<models::PackedWeights>(*parts->model);
  parts->preprocess = model.preprocess;
  parts->tokenizer = std::move(tokenizer);
  parts_ = std::move(parts);
}

Encoder::Encoder(std::shared_ptr<const Parts> parts) : parts_(std::move(parts)) {}

torch::Tensor Encoder::encode_images(std::span<const fs::path> files) const {
  return parts_->encode(FileSource(files, parts_->options.limits, /*note_failures=*/false)).features;
}

torch::Tensor Encoder::encode_places(std::span<const fs::path> files) const {
  if (files.empty()) return at::empty({0, 1, embed_dim()});
  return parts_->encode(FileSource(files, parts_->options.limits, /*note_failures=*/false), /*places=*/true).features;
}

torch::Tensor Encoder::encode_image_bytes(std::span<const std::span<const uint8_t>> images) const {
  return parts_->encode(BytesSource(images, parts_->options.limits, /*note_failures=*/false)).features;
}

EncodedImages Encoder::try_encode_images(std::span<const fs::path> files) const {
  return parts_->encode(FileSource(files, parts_->options.limits, /*note_failures=*/true));
}

EncodedImages Encoder::try_encode_image_bytes(std::span<const std::span<const uint8_t>> images) const {
  return parts_->encode(BytesSource(images, parts_->options.limits, /*note_failures=*/true));
}

EncodedImages Encoder::try_encode_images(const data::SampleSource& source, int64_t begin, int64_t end) const {
  if (begin < 0 || begin > end || end > source.size()) {
    throw Error(
        fmt::format("[encode_images] samples [{}, {}) do not lie in a source of {}", begin, end, source.size()));
  }
  return parts_->encode(PartSource(source, begin, end, parts_->options.limits));
}

torch::Tensor Encoder::encode_images(const torch::Tensor& pixels) const {
  const auto size = image_size();
  TORCH_CHECK(pixels.scalar_type() == at::kByte && pixels.dim() == 4 && pixels.size(1) == size &&
                  pixels.size(2) == size && pixels.size(3) == 3,
              "[encode_images] pixels must be uint8 [N, ", size, ", ", size, ", 3], but are ", pixels.scalar_type(),
              " ", pixels.sizes());
  std::vector<torch::Tensor> rows;
  for (int64_t begin = 0; begin < pixels.size(0); begin += parts_->options.batch_size) {
    const auto end = std::min(pixels.size(0), begin + parts_->options.batch_size);
    rows.push_back(parts_->encode_pixels(pixels.slice(0, begin, end)));
  }
  return parts_->concatenate(rows);
}

torch::Tensor Encoder::encode_texts(std::span<const std::string> texts) const {
  if (!parts_->tokenizer) throw ConfigError("[encode_texts] this encoder was made without a tokenizer");
  const auto batch_size = static_cast<size_t>(parts_->options.batch_size);
  std::vector<torch::Tensor> rows;
  pipeline(
      num_batches(static_cast<int64_t>(texts.size()), parts_->options.batch_size),
      [&](int64_t number) {
        const auto begin = static_cast<size_t>(number) * batch_size;
        return parts_->tokenize(texts.subspan(begin, std::min(batch_size, texts.size() - begin)));
      },
      [&](const torch::Tensor& tokens) { rows.push_back(parts_->encode_tokens(tokens)); });
  return parts_->concatenate(rows);
}

Encoder Encoder::unnormalized() const {
  auto parts = std::make_shared<Parts>(*parts_);
  parts->options.normalize = false;
  return Encoder(std::move(parts));
}

int64_t Encoder::embed_dim() const {
  return parts_->model->config().embed_dim;
}

int64_t Encoder::image_size() const {
  return parts_->preprocess.size;
}

torch::Device Encoder::device() const {
  return parts_->device;
}

double Encoder::logit_scale() const {
  return parts_->logit_scale;
}

std::optional<double> Encoder::logit_bias() const {
  return parts_->logit_bias;
}

const image::PreprocessSpec& Encoder::preprocess() const {
  return parts_->preprocess;
}

std::string Encoder::fingerprint() const {
  return detail::model_fingerprint(*parts_->model, parts_->preprocess);
}

const EncoderOptions& Encoder::options() const {
  return parts_->options;
}

}  // namespace contrastive::eval
