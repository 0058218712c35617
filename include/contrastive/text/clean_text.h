#pragma once

#include <string>
#include <string_view>

#include "contrastive/core/export.h"

namespace contrastive::text {

/// What is done to a caption before it is split. All but `none` repair the text, resolve HTML entities (twice) and make
/// every run of white space one space.
/// `whitespace`: no more. `lower`: lower case. `canonicalize`: '_' becomes a space, ASCII punctuation goes, lower case.
enum class Cleaning { none, whitespace, lower, canonicalize };

/// The cleaning that precedes a tokenizer; the default is CLIP's. `none` hands the text on as it is, otherwise invalid
/// UTF-8 is replaced by U+FFFD and pairs of surrogates in three-byte form are joined.
/// Source: ftfy 6.3.1 (default settings, mojibake repair included), then HTML and Unicode rules as in Python;
/// `canonicalize` is big_vision's. Deviates: entities nested more than 32 deep stay.
CONTRASTIVE_API std::string clean_text(std::string_view text, Cleaning cleaning = Cleaning::lower);

}  // namespace contrastive::text
