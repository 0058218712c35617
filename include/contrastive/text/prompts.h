#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "contrastive/core/export.h"

namespace contrastive::text {

/// Puts a class name into a template: every "{c}" (CLIP_benchmark) or "{}" (OpenAI) is replaced.
/// The class name is put in as it is: a placeholder inside it stays.
/// Throws: DataError if the template has neither.
CONTRASTIVE_API std::string fill_template(std::string_view prompt_template, std::string_view class_name);

/// The names that prompt_set knows.
CONTRASTIVE_API const std::vector<std::string>& prompt_set_names();

/// A published set of templates:
/// - clip_80: those that CLIP is evaluated with on ImageNet, from the resource imagenet/templates_openai.txt;
/// - clip_paper: the same and the bare class name, 81 in all;
/// - clip_best: the seven that CLIP's authors found to be almost as good, and the bare class name;
/// - class_name: the bare class name.
/// Source: Radford et al. 2021 and its notebook; big_vision, whose clip_paper and clip_best these are.
/// Throws: ConfigError that lists the names if there is no such set; Error if the resource is missing.
CONTRASTIVE_API std::vector<std::string> prompt_set(std::string_view name);

/// A template a line; empty lines at the end don't count.
/// Throws: DataError that names the file and the line: unreadable, no template, or one without a placeholder.
CONTRASTIVE_API std::vector<std::string> read_templates(const std::filesystem::path& file);

/// big_vision's canonical form: '_' becomes a space, ASCII punctuation but placeholders goes, lower case, runs of white
/// space become one space, none at the ends.
CONTRASTIVE_API std::string canonicalize_template(std::string_view prompt_template);

/// The same of a class name, of which only the first alias stays: what stands before the first comma.
CONTRASTIVE_API std::string canonicalize_class_name(std::string_view class_name);

}  // namespace contrastive::text
