#include "eval/google_weights.h"

namespace contrastive::eval::detail {

bool is_google_file(const std::filesystem::path& file) {
  return file.extension() == ".npz";
}

image::PreprocessSpec google_preprocess(int64_t image_size) {
  image::PreprocessSpec spec;
  spec.size = image_size;
  spec.mean = spec.std = {0.5F, 0.5F, 0.5F};
  spec.interpolation = image::Interpolation::bilinear;
  spec.antialias = false;
  spec.resize_mode = image::ResizeMode::squash;
  return spec;
}

models::TextConfig with_lit_tokenizer(models::TextConfig config) {
  config.hf_tokenizer_name = config.is_bert() ? config.hf_model_name : "lit-sentencepiece";
  config.tokenizer_policy = "lit";
  return config;
}

}  // namespace contrastive::eval::detail
