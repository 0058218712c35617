#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/data/source.h"

namespace contrastive::data {

/// Images and the captions that belong to them.
struct RetrievalSet {
  std::string name;                            ///< of the data set: the folder's or file's
  std::shared_ptr<const SampleSource> source;  ///< the N images
  std::vector<std::string> captions;           ///< [M], those of an image one after the other
  std::vector<int64_t> caption_image;          ///< [M], the image of each, rising from 0 to N - 1
};

struct RetrievalSetOptions {
  std::string split = "test";      ///< subfolder, or split of a JSON file; train+restval: both
  std::string images;              ///< folder that the images' paths are relative to; "": the captions file's
  std::string captions;            ///< file in place of what the path says; the path is then the images' folder
  int64_t captions_per_image = 0;  ///< the first so many of each image; 0: all
  std::string image_key;           ///< column of a CSV file; "": image, filepath, path or filename
  std::string caption_key;         ///< the same; "": caption, title, text or raw
  std::string separator;           ///< of a CSV file: a character or `tab`; "": as the header line has it
};

/// Opens images with captions. What lies at `data` decides on the kind:
/// - webdataset shards in CLIP_benchmark's layout (see open_classification_set), or a folder of .tar files: the lines
///   of the .txt members are the captions;
/// - Karpathy's dataset_coco.json and dataset_flickr30k.json: the images of `split`, in the file's order;
/// - coco_<split>_karpathy.json: a list of {"image": ..., "caption": [...]};
/// - COCO's captions_*.json: images without annotations are left out;
/// - a CSV or TSV file with a header line: rows of the same image are its captions. If the caption is the last column,
///   an unquoted one may hold the separator (flickr30k_<split>_karpathy.txt);
/// - a folder that holds one of these files under its usual name.
/// Images are in the order of first appearance. Captions are stripped, empty ones dropped; they are read once, here.
///
/// Throws: ConfigError for options; DataError that names the file and what is wrong in it: an image without a caption,
/// image files that are missing (the first and their number), text that is not UTF-8, ...
CONTRASTIVE_API RetrievalSet open_retrieval_set(const std::filesystem::path& data,
                                                const RetrievalSetOptions& options = {});

}  // namespace contrastive::data
