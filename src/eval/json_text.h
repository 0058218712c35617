#pragma once

#include <string>

#include <nlohmann/json.hpp>

namespace contrastive::eval::detail {

/// JSON text; bytes that are no UTF-8 (names of files may hold such) become U+FFFD.
inline std::string json_text(const nlohmann::ordered_json& document, int indent = -1) {
  return document.dump(indent, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace contrastive::eval::detail
