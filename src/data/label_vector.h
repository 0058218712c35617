#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace contrastive::data::detail {

/// The classes that a .npy member marks: the places of the ones in a vector of 0 and 1 of any real dtype.
/// `num_labels`: its length, if above 0. Throws: DataError.
/// Source: NumPy's documentation of numpy.lib.format.
std::vector<int64_t> parse_label_vector(std::string_view content, int64_t num_labels);

}  // namespace contrastive::data::detail
