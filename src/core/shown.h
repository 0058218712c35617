#pragma once

#include <string>
#include <string_view>

namespace contrastive::detail {

/// What a message shows of text from a file: printable, and not as long as the file.
inline std::string shown(std::string_view text) {
  constexpr size_t kMaxShown = 100;
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string result;
  for (const char byte : text.substr(0, kMaxShown)) {
    if (byte >= 0x20 && byte < 0x7f) {
      result += byte;
    } else {
      result += {'\\', 'x', kHex[static_cast<unsigned char>(byte) >> 4], kHex[byte & 0xf]};
    }
  }
  return text.size() > kMaxShown ? result + "..." : result;
}

}  // namespace contrastive::detail
