#pragma once

#include <cstdint>
#include <filesystem>

#include "contrastive/image/transform.h"
#include "contrastive/models/model_config.h"

/// What is known of Google's published towers beside their tensors.
namespace contrastive::eval::detail {

/// By its name: .npz.
bool is_google_file(const std::filesystem::path& file);

/// Pixels in [-1, 1], the whole image squeezed to a square without antialias.
image::PreprocessSpec google_preprocess(int64_t image_size);

/// The tokenizer that LiT's text towers were trained with: WordPiece for a BERT, else SentencePiece.
models::TextConfig with_lit_tokenizer(models::TextConfig config);

}  // namespace contrastive::eval::detail
