// A program of somebody else's, built against an installed library: classifies an image with a trained checkpoint.
// usage: uses_contrastive CHECKPOINT IMAGE
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

#include <ATen/ATen.h>
#include <contrastive/core/file.h>
#include <contrastive/data/normalize.h>
#include <contrastive/eval/model_folder.h>
#include <contrastive/image/transform.h>
#include <contrastive/text/clip_tokenizer.h>

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  auto loaded = contrastive::eval::load_model(argv[1]);
  std::ifstream stream(argv[2], std::ios::binary);
  const std::vector<uint8_t> bytes((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  auto image =
      contrastive::image::preprocess_for_evaluation(contrastive::image::decode_image(bytes), loaded.preprocess);
  const auto pixels = at::from_blob(image.pixels.data(), {1, image.height, image.width, 3}, at::kByte);
  const auto images =
      contrastive::data::normalize_images(pixels, loaded.preprocess.mean, loaded.preprocess.std, torch::kCPU);

  const contrastive::text::ClipTokenizer tokenizer(contrastive::find_resource("clip/bpe_simple_vocab_16e6.txt.gz"));
  std::vector<int32_t> row(static_cast<size_t>(loaded.model->config().text_cfg.context_length));
  tokenizer.tokenize("a red circle", row);
  const auto tokens = at::tensor(at::ArrayRef<int32_t>(row), at::kInt).to(at::kLong).unsqueeze(0);
  const auto output = loaded.model->forward(images, tokens);
  std::cout << "similarity " << output.image_features.mul(output.text_features).sum().item<float>() << "\n";
  return 0;
}
