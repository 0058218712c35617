#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "contrastive/adapt/support_set.h"
#include "contrastive/core/export.h"
#include "contrastive/image/image.h"

namespace contrastive::adapt {

struct ContactSheetOptions {
  int64_t tile = 96;          ///< pixels of a thumbnail's sides
  int64_t per_class = 10;     ///< thumbnails of a class: its first rows
  int64_t first_class = 0;    ///< where the sheet begins
  int64_t max_classes = 100;  ///< of one sheet
};

/// A picture of a support set: a line a class, with its name and number of rows at the left and thumbnails beside it,
/// below each its score or note. `read`: the image of a row; where there is none the tile stays grey.
/// Throws: ConfigError if an option is out of range.
CONTRASTIVE_API image::Image draw_contact_sheet(const SupportSet& set,
                                                const std::function<std::optional<image::Image>(int64_t row)>& read,
                                                const ContactSheetOptions& options = {});

}  // namespace contrastive::adapt
