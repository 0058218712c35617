#include "data/sample_faults.h"

#include <array>
#include <string_view>
#include <utility>

namespace contrastive::data::detail {

Fault reading_fault(std::string message) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 4> kClasses{
      {{"no caption", "caption missing"},
       {"caption is empty", "caption empty"},
       {"caption", "caption malformed"},
       {"no image", "image missing"}}};
  for (const auto& [words, reason] : kClasses) {
    if (message.find(words) != message.npos) return {std::string(reason), std::move(message)};
  }
  return {"unreadable sample", std::move(message)};
}

Fault decoding_fault(std::string message) {
  const bool truncated = message.find("truncated") != message.npos;
  return {truncated ? "truncated image" : "undecodable image", std::move(message)};
}

std::optional<Fault> caption_fault(const std::string& caption) {
  if (caption.empty()) return Fault{"caption missing", "caption is missing"};
  if (caption.find_first_not_of(" \t\r\n\v\f") == caption.npos) {
    return Fault{"caption empty", "caption is empty: white space only"};
  }
  return std::nullopt;
}

}  // namespace contrastive::data::detail
