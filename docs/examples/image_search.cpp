// Finds the images that fit a text, among those that `clip_embed images` has embedded into FOLDER.
// usage: image_search CHECKPOINT FOLDER TEXT...        e.g. image_search runs/quickstart photos "a red circle"
#include <cstdint>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <contrastive/core/safetensors.h>
#include <contrastive/eval/encoder.h>
#include <contrastive/eval/search.h>

namespace {

std::vector<std::string> read_lines(const std::filesystem::path& file) {
  std::ifstream stream(file);
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 4) throw std::runtime_error("usage: image_search CHECKPOINT FOLDER TEXT...");
  const auto encoder = contrastive::eval::Encoder::open(argv[1]);
  const std::filesystem::path folder = argv[2];
  const auto names = read_lines(folder / "names.txt");
  // Mapped from the file, not read into memory: the index may be larger than that.
  const auto index = contrastive::SafetensorsFile(folder / "features.safetensors").tensor("features");  // [N, E]

  const std::vector<std::string> queries(argv + 3, argv + argc);
  const auto found = contrastive::eval::search(encoder.encode_texts(queries), index, /*k=*/5);
  for (size_t q = 0; q < queries.size(); ++q) {
    std::cout << queries[q] << "\n";
    const auto row = static_cast<int64_t>(q);
    for (int64_t rank = 0; rank < found.indices.size(1); ++rank) {
      const auto image = found.indices[row][rank].item<int64_t>();
      std::cout << "  " << found.scores[row][rank].item<float>() << "  " << names.at(static_cast<size_t>(image))
                << "\n";
    }
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << "image_search: " << error.what() << "\n";
  return 1;
}
