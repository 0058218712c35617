#pragma once

#include <filesystem>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/core/lazy_tensor.h"

namespace contrastive {

/// The arrays of a file of numpy.savez, or of any zip archive of .npy members (stored or deflated, zip64, headers of
/// versions 1 to 3): opening maps the file and reads the headers only; an array is read, and its checksum verified,
/// when it is asked for. Names are those of the members without ".npy", sorted. Dtypes: bool, integers, float16 to
/// float64 and complex, little-endian; two bytes of unknown meaning (`|V2`) are bfloat16, whose name NumPy does not
/// store. Arrays in Fortran order get C order. Pickles are never read. Throws: CheckpointError if the file is missing,
/// truncated or damaged, holds anything but such arrays, or an array has not the size that its header claims. Source:
/// NumPy's documentation of numpy.lib.format.
CONTRASTIVE_API std::vector<LazyTensor> open_npz_file(const std::filesystem::path& file);

}  // namespace contrastive
