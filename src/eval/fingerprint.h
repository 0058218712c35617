#pragma once

#include <functional>
#include <string>

#include "contrastive/image/transform.h"
#include "contrastive/models/clip_model.h"

namespace contrastive::eval::detail {

/// SHA-256 over some text and the names and values of the model's tensors that `is_part` lets through.
std::string tensors_fingerprint(std::string text, const models::ClipModelImpl& model,
                                const std::function<bool(const std::string& name)>& is_part);

/// Of all that makes features: config, preprocessing and weights.
std::string model_fingerprint(const models::ClipModelImpl& model, const image::PreprocessSpec& preprocess);

/// Of all that makes text features out of tokens.
std::string text_fingerprint(const models::ClipModelImpl& model);

/// SHA-256 of a text, in hex.
std::string digest_of(const std::string& text);

}  // namespace contrastive::eval::detail
