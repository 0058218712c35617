#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "contrastive/data/image_list.h"

#include "data/class_list.h"

namespace contrastive::data::detail {

/// The folder that class folders lie in: `<data>/<split>`, or `data` itself. Throws: DataError if it holds no folder,
/// or folders of other splits only ("train", "Testing", ...).
std::filesystem::path find_class_root(const std::filesystem::path& data, const std::string& split);

/// Whether a folder is called as a split, in whatever case.
bool is_split_name(const std::string& folder);

/// Names of the folders in a folder, sorted by bytes; links followed, hidden ones left out. Throws: DataError, also
/// for a name that is not UTF-8.
std::vector<std::string> subfolders(const std::filesystem::path& folder);

/// The image files below `root`/`folder`, as paths relative to `root` in torchvision's order: by the folder they are
/// in, then by name. Throws: DataError, also for links that lead round in a circle and for images of a format that
/// can't be decoded.
std::vector<std::string> find_images(const std::filesystem::path& root, const std::string& folder);

/// The images of all classes; `set` gets names and ids of the classes that there are folders of.
std::vector<ListedImage> list_class_folders(const std::filesystem::path& root, const std::vector<std::string>& folders,
                                            const ClassList& list, ClassificationSet& set);

}  // namespace contrastive::data::detail
