#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/data/source.h"

namespace contrastive::data {

/// Labelled images with what a zero-shot classifier is built from.
struct ClassificationSet {
  std::vector<std::string> class_names;  ///< label i is class_names[i]
  std::vector<std::string> class_ids;    ///< of the same order, as "n01440764"; empty if the set has none
  std::vector<std::string> templates;    ///< each holds a placeholder for the class name; may be empty
  bool is_multi_label = false;           ///< samples have Sample::labels instead of a label
  std::shared_ptr<const SampleSource> source;
  std::string name;  ///< of the data set: the folder's
};

/// What a data set doesn't say itself, or says wrongly.
struct ClassificationSetOptions {
  std::string split = "test";  ///< the subfolder that is read, where there are splits
  std::string class_names;     ///< file in place of the set's names, or `imagenet`: the library's list
  std::string class_ids;       ///< file: the first word of line i is class i's id; or `imagenet`
  std::string labels;          ///< JSON file with several labels an image, in place of the set's labels
  std::string image_key;       ///< column of a CSV file; "": image, filepath, path or filename
  std::string label_key;       ///< the same; "": label or class
  std::string separator;       ///< of a CSV file: a character or `tab`; "": as the header line has it
};

/// Opens a labelled data set. What lies at `data` decides on its kind:
///
/// 1. CLIP_benchmark's webdataset folder, or one split of it:
///
///        <data>/classnames.txt                            a name a line
///        <data>/zeroshot_classification_templates.txt     a template a line; may be missing
///        <data>/dataset_type.txt                          "multilabel", if it is one
///        <data>/<split>/{nshards.txt, 0.tar, 1.tar, ...}  members .webp, .png, .jpg or .jpeg, and .cls (integer text)
///                                                         or, of a multi-label set, .npy (a vector of 0 and 1)
///
///    Without nshards.txt all .tar files of the folder are read, sorted by name. Every integer .cls is looked at: one
///    outside the class names is an error. So is a .txt beside a .cls that is the name of another class (up to 256
///    samples are compared, letters' case aside).
/// 2. Class folders: `<data>/<split>/<class>/**` or `<data>/<class>/**`, links followed, hidden files skipped, files
///    .jpg, .jpeg, .png, .webp, .gif and .bmp in any case; classes and images in torchvision's order. With `labels`
///    the images may also lie in one folder without classes. An image of another format (.tif, .ppm, .heic, ...) is an
///    error. A folder that is called as another split, in any case, is no class.
/// 3. A CSV or TSV file with a header line: an image's path, relative to the file, and its label: an index, or a
///    class's name or id. Without `separator` it is a tab in .tsv, else ',', or what a header line without one has of
///    tab, '|' and ';'.
///
/// Names come from `class_names`, or from classnames.txt, LOC_synset_mapping.txt or imagenet_class_index.json beside
/// the data; class folders may do without (a class is called as its folder, '_' stays), and so may a CSV file whose
/// labels are words (classes are the different labels, sorted). A names file has one of these forms:
/// - a name a line. Line i is class i: of class ids if there are any, else of the class folders in sorted order, or in
///   the order of numbers if every folder is one without leading zeros (ImageNetV2's "0" to "999");
/// - a line of a WordNet id, white space, and the name, which ends at a comma; any other id, such as a folder's name,
///   must be followed by a tab;
/// - JSON: {"0": ["n01440764", "great_white_shark"], ...}, whose '_' become blanks; {"n01440764": "tench", ...};
///   {"0": "tench", ...}, where the keys are ids if all class folders are among them, else 0 to N - 1; or ["tench",
///   ...].
/// With ids, class folders are found by id, and the set has the classes that there are folders of, in the order of the
/// ids: so the 200 classes of ImageNet-A and ImageNet-R are taken from a list of 1,000. Ids are passed over if the
/// folders are numbers and none is an id. With `labels`, or if `data` is called as a split, the names file may also lie
/// in the parent of `data`.
///
/// A `labels` file is a list of lists of class indices, if the samples' file names without extension end in the numbers
/// 1 to N, each once, which tell their places in it (ReaL: ILSVRC2012_val_00000001); or an object of such lists by file
/// name or key. Samples with an empty list stay.
///
/// Throws: ConfigError for options; DataError that names the file, the line, the folder or the sample, for whatever is
/// missing, malformed or contradicts itself. Source: CLIP_benchmark's and torchvision's documented layouts.
CONTRASTIVE_API ClassificationSet open_classification_set(const std::filesystem::path& data,
                                                          const ClassificationSetOptions& options = {});

/// The same of a webdataset folder with no option but the split.
CONTRASTIVE_API ClassificationSet open_classification_folder(const std::filesystem::path& folder,
                                                             const std::string& split = "test");

}  // namespace contrastive::data
