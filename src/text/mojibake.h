#pragma once

#include <string>
#include <string_view>

namespace contrastive::text {

/// Whether a text holds a sequence of characters that is unlikely unless it was decoded in the wrong code page.
bool looks_misread(std::u32string_view text);

/// Undoes that UTF-8 was decoded in a single-byte code page (once or several times), in the whole text or in parts;
/// text that does not look misread comes back as it is. Surrogates are handed on. O(n log n) at worst.
/// Source: ftfy 6.3.1, fix_encoding with its default settings.
std::u32string repair_mojibake(std::u32string text);

}  // namespace contrastive::text
