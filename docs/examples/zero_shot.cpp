// Says which of some descriptions fits an image.
// usage: zero_shot CHECKPOINT IMAGE CLASS...       e.g. zero_shot runs/quickstart cat.jpg cat dog "old car"
#include <array>
#include <exception>
#include <filesystem>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include <contrastive/eval/classifier.h>
#include <contrastive/eval/encoder.h>

int main(int argc, char** argv) try {
  if (argc < 4) throw std::runtime_error("usage: zero_shot CHECKPOINT IMAGE CLASS...");
  const auto encoder = contrastive::eval::Encoder::open(argv[1]);
  const std::vector<std::string> templates{"a photo of a {}.", "a drawing of a {}."};
  const contrastive::eval::ZeroShotClassifier classifier(encoder, {argv + 3, argv + argc}, templates);

  const std::array<std::filesystem::path, 1> files{argv[2]};
  const auto predictions = classifier.classify(encoder.encode_images(files));
  for (const auto& prediction : predictions.front()) {
    std::cout << prediction.probability * 100 << " %  " << prediction.name << "\n";
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << "zero_shot: " << error.what() << "\n";
  return 1;
}
