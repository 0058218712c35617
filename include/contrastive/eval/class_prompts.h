#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/data/classification_set.h"

namespace contrastive::eval {

/// The texts that stand for each class of a data set.
struct ClassPrompts {
  std::string name;                               ///< where they are from, as "clip_80"
  std::vector<std::vector<std::string>> prompts;  ///< [C], at least one each

  /// SHA-256 over the prompts of every class.
  CONTRASTIVE_API std::string fingerprint() const;

  int64_t num_classes() const { return static_cast<int64_t>(prompts.size()); }
};

/// Every template filled with every name (see text::fill_template). With `canonicalize` both are brought to
/// big_vision's canonical form first. Throws: DataError if there is no name, no template, or a template without a
/// placeholder.
CONTRASTIVE_API ClassPrompts fill_templates(std::string name, const std::vector<std::string>& class_names,
                                            const std::vector<std::string>& templates, bool canonicalize = false);

/// Prompts written for each class, as those of CuPL: a JSON object from a class's id or name to a list of texts (or
/// one). Entries for other classes are left alone, as sets are often parts of larger ones. A class is looked up by its
/// id first; a name that several classes have can't be used as key. Throws: DataError that names the file and every
/// class without prompts, or what is malformed.
CONTRASTIVE_API ClassPrompts read_class_prompts(const std::filesystem::path& file, const data::ClassificationSet& set);

/// The prompts that `source` names: "" or "dataset": the data set's own templates; one of text::prompt_set_names(); a
/// .json file for read_class_prompts; another file with a template a line.
/// Throws: ConfigError that lists what may be named; DataError as the above.
CONTRASTIVE_API ClassPrompts class_prompts(const std::string& source, const data::ClassificationSet& set,
                                           bool canonicalize = false);

/// For each class the first one of the same name: the class itself, unless a name occurs several times.
CONTRASTIVE_API std::vector<int64_t> first_of_same_name(const std::vector<std::string>& class_names);

}  // namespace contrastive::eval
