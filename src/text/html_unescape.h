#pragma once

#include <string>
#include <string_view>

namespace contrastive::text {

/// Replaces every character reference by HTML5's rules for text: numbers, names, old names without ';' (longest
/// prefix). One pass: what a replacement spells is not read again.
std::u32string html_unescape(std::u32string_view text);

/// The careful variant of ftfy: only references that end in ';' and are consumed whole, names of at most 24 characters;
/// also names in capitals, such as &NTILDE;, that HTML does not know.
std::u32string unescape_closed_entities(std::u32string_view text);

}  // namespace contrastive::text
