#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "contrastive/core/export.h"
#include "contrastive/core/random.h"
#include "contrastive/image/image.h"
#include "contrastive/image/resize.h"

namespace contrastive::image {

/// How an image of another shape is brought to the model's square (open_clip's resize_mode).
enum class ResizeMode {
  shortest,  ///< shorter side to `size`, then centre crop
  longest,   ///< longer side to `size`, then centred on `fill_color`
  squash,    ///< both sides to `size`
};

/// What a model expects of its images; stored beside the weights (open_clip's preprocess_cfg, which knows neither
/// `antialias` nor `crop_fraction`).
struct PreprocessSpec {
  int64_t size = 224;  ///< pixels, both sides
  std::array<float, 3> mean{0.48145466F, 0.4578275F, 0.40821073F};
  std::array<float, 3> std{0.26862954F, 0.26130258F, 0.27577711F};
  Interpolation interpolation = Interpolation::bicubic;
  ResizeMode resize_mode = ResizeMode::shortest;
  uint8_t fill_color = 0;
  /// false: resized as resize_without_antialias, and cropped as TensorFlow programs do (sides rounded, halves to even;
  /// the crop's offset rounded down). Bilinear, and shortest or squash only.
  bool antialias = true;
  /// What the centre crop leaves of the resized sides, in (0, 1]: images are resized to floor(size / crop_fraction)
  /// first, as timm does by its crop_pct. Shortest or squash only.
  double crop_fraction = 1.0;
};

/// Evaluation preprocessing up to the uint8 RGB square, byte for byte as open_clip's image_transform(is_train=False).
/// Resizes in the image's own mode and converts afterwards; pass `to_rgb(image)` for the order of shard readers.
/// Without antialias it converts first. Returns: rgb, size x size. Throws: Error if a field of the spec is out of range
/// or doesn't go with the others.
CONTRASTIVE_API Image preprocess_for_evaluation(const Image& image, const PreprocessSpec& spec);

/// How a training crop is chosen.
enum class TrainCrop {
  random_resized,  ///< area in [scale_min, scale_max], aspect in [3/4, 4/3]; open_clip's default (0.9, 1.0)
  random_square,   ///< shorter side to `size`, then a random square; the CLIP paper's
  none,            ///< no augmentation: evaluation preprocessing, of the image converted to RGB
};

/// At which size a JPEG is decoded for a training crop.
enum class JpegScaling {
  none,  ///< at its own: the bytes are PIL's
  dct,   ///< an approximation: at 1/2, 1/4 or 1/8 where the crop stays large enough, as after PIL's draft
};

struct TrainCropOptions {
  TrainCrop kind = TrainCrop::random_resized;
  double scale_min = 0.9;
  double scale_max = 1.0;
  PreprocessSpec evaluation = {};  ///< of `none`; its size is the training square's
  JpegScaling jpeg_scaling = JpegScaling::none;
  /// With `dct`: the smallest decoded size is taken whose crop still has this many times the square's side both ways,
  /// at least 1. Smaller is faster and coarser.
  double jpeg_scaling_ratio = 1.5;
};

/// Draws the part of a width x height image that becomes the training square (before resizing to it).
/// random_resized: ten tries, then the central fallback, as torchvision's RandomResizedCrop.get_params. none: all of
/// it.
CONTRASTIVE_API Box draw_train_crop(int64_t width, int64_t height, const TrainCropOptions& options,
                                    RandomStream& random);

/// Decodes an image, converts it to RGB, draws a crop and resizes it to size x size by antialiased bicubic: the bytes
/// are those of PIL's convert("RGB"), crop and resize. A JPEG is decoded only as far as the crop needs, and smaller
/// with JpegScaling::dct: the crop, drawn in full-size pixels, then has fractional sides. With `none` the bytes are
/// those of preprocess_for_evaluation(to_rgb(image), options.evaluation). `out`: [size, size, 3], row-major. `random`
/// decides the crop from the header's size, before decoding. Thread-safe; each thread keeps its own scratch memory
/// between calls. Throws: DataError as decode_image, Error if `out` has another size, or options.evaluation with
/// `none`, or jpeg_scaling_ratio is below 1.
CONTRASTIVE_API void decode_for_training(std::span<const uint8_t> bytes, int64_t size, const TrainCropOptions& options,
                                         RandomStream& random, std::span<uint8_t> out, const DecodeLimits& limits = {});

/// The same from an image in memory.
CONTRASTIVE_API void crop_for_training(const Image& image, int64_t size, const TrainCropOptions& options,
                                       RandomStream& random, std::span<uint8_t> out);

}  // namespace contrastive::image
