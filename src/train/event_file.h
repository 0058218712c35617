#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace contrastive::train::detail {

/// CRC-32C (Castagnoli), as TensorBoard's records carry it.
uint32_t crc32c(std::string_view bytes);

/// A TensorBoard event file, written without protobuf: scalars only.
/// Format: records of (u64 length, masked crc of it, payload, masked crc of the payload); payloads are Event messages.
class EventFile {
 public:
  /// Creates a new file in `directory`. `purge_from_step`: TensorBoard drops what earlier files say of later steps.
  EventFile(const std::filesystem::path& directory, int64_t purge_from_step);

  /// False if the file could not be written.
  bool write(int64_t step, const std::vector<std::pair<std::string, double>>& scalars);

 private:
  bool write_record(const std::string& payload);

  std::ofstream stream_;
};

}  // namespace contrastive::train::detail
