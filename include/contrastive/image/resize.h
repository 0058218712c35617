#pragma once

#include <cstdint>

#include "contrastive/core/export.h"
#include "contrastive/image/image.h"

namespace contrastive::image {

enum class Interpolation { nearest, bilinear, bicubic };

/// A box inside an image, in pixels: columns [left, left + width), rows [top, top + height).
struct Box {
  int64_t left = 0;
  int64_t top = 0;
  int64_t width = 0;
  int64_t height = 0;
};

/// Resizes byte for byte as Pillow 13's Image.resize: separable, antialiased, 22-bit fixed-point coefficients, uint8
/// between the passes; bicubic has a = -0.5. The horizontal pass goes first unless the height loses more than twice the
/// pixels that the width does (older Pillows: always). Palette and bilevel images are resampled with nearest, alpha
/// images premultiplied. Throws: Error if a side is below 1.
CONTRASTIVE_API Image resize(const Image& image, int64_t width, int64_t height, Interpolation interpolation);

/// Resizes an RGB image bit for bit as TensorFlow's bilinear tf.image.resize without antialias, cast to uint8:
/// half-pixel centres, the four neighbours of each place weighted in fp32, the result cut off instead of rounded.
/// Google's ViT, Mixer and LiT models are evaluated so. Throws: Error if a side is below 1 or the image has another
/// mode.
CONTRASTIVE_API Image resize_without_antialias(const Image& image, int64_t width, int64_t height);

/// The part of an image inside `box`. Throws: Error if the box doesn't lie within it.
CONTRASTIVE_API Image crop(const Image& image, const Box& box);

}  // namespace contrastive::image
