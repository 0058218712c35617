#pragma once

#include <string>
#include <string_view>

#include "contrastive/core/export.h"

namespace contrastive::text {

/// Puts a class name into a template: every "{c}" (CLIP_benchmark) or "{}" (OpenAI) is replaced.
/// The class name is put in as it is: a placeholder inside it stays.
/// Throws: DataError if the template has neither.
CONTRASTIVE_API std::string fill_template(std::string_view prompt_template, std::string_view class_name);

}  // namespace contrastive::text
