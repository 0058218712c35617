#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "contrastive/text/clip_tokenizer.h"

namespace contrastive::tools {

struct LoaderArguments {
  std::string shards;
  int64_t image_size = 224;
  int64_t batch_size = 32;
  std::vector<int64_t> workers = {1};  ///< decoding threads, one run for each number
  int64_t epochs = 3;
  int64_t samples = 0;  ///< above 0: as many epochs as this many samples take, instead of `epochs`
};

/// Times training batches from shards: read, decode, crop, resize, tokenise. One result for each number of workers: the
/// rate of the epochs, without the first batch of each (as open_clip's loader, which starts anew at every epoch, is
/// measured), the rate over everything, and the memory after a tenth of the batches and at the end.
/// Throws: ConfigError if there is not a batch; DataError about the shards.
std::vector<nlohmann::ordered_json> bench_loader(const LoaderArguments& arguments);

/// CLIP's, from the resources.
std::shared_ptr<const text::ClipTokenizer> clip_tokenizer();

}  // namespace contrastive::tools
