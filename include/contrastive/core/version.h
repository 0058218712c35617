#pragma once

#include <string>

#include "contrastive/core/export.h"

namespace contrastive {

/// The library's version, "MAJOR.MINOR.PATCH".
CONTRASTIVE_API std::string version();

/// Version, LibTorch's version and whether CUDA was built in, for logs and bug reports.
CONTRASTIVE_API std::string version_details();

}  // namespace contrastive
