#include "contrastive/core/version.h"

#include <fmt/format.h>
#include <torch/version.h>

namespace contrastive {

std::string version() {
  return CONTRASTIVE_VERSION;
}

std::string version_details() {
  return fmt::format("libcontrastive {} (LibTorch {}, {})", CONTRASTIVE_VERSION, TORCH_VERSION,
                     CONTRASTIVE_WITH_CUDA ? "CUDA" : "CPU only");
}

}  // namespace contrastive
