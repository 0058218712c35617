#include "eval/evaluation_data.h"

#include <utility>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/data/synthetic.h"
#include "contrastive/data/webdataset_source.h"

#include "eval/fingerprint.h"

namespace contrastive::eval::detail {
namespace {

constexpr const char* kSynthetic = "synthetic";

data::ClassificationSet open_set(const EvaluationTask& task, const std::string& path, const std::string& split) {
  if (path == kSynthetic) {
    data::SyntheticOptions options;
    options.seed += split == task.split ? 0 : 1;  // other samples for each split
    options.samples = 2000;
    return data::synthetic_classification(options);
  }
  data::ClassificationSetOptions options;
  options.split = split;
  options.class_names = task.class_names;
  options.class_ids = task.class_ids;
  options.labels = split == task.split ? task.labels : "";
  options.image_key = task.image_key;
  options.label_key = task.label_key;
  options.separator = task.separator;
  return data::open_classification_set(path, options);
}

data::RetrievalSet open_pairs(const EvaluationTask& task) {
  data::RetrievalSetOptions options;
  options.split = task.split;
  options.images = task.images;
  options.captions = task.captions;
  options.captions_per_image = task.captions_per_image;
  options.image_key = task.image_key;
  options.caption_key = task.caption_key;
  options.separator = task.separator;
  return data::open_retrieval_set(task.data, options);
}

void add_set(const char* role, const data::ClassificationSet& set, std::string& text) {
  text += fmt::format("{} {} {}\n", role, set.source->fingerprint(), set.source->size());
  for (const auto& name : set.class_names) text += name + "\n";
}

}  // namespace

std::string EvaluationData::fingerprint() const {
  std::string text;
  if (test) add_set("test", *test, text);
  if (train) add_set("train", *train, text);
  if (validation) add_set("validation", *validation, text);
  if (pairs) {
    text += fmt::format("pairs {}\n", pairs->source->fingerprint());
    for (size_t i = 0; i < pairs->captions.size(); ++i) {
      text += fmt::format("{} {}\n", pairs->caption_image[i], pairs->captions[i]);
    }
  }
  return digest_of(text);
}

std::string source_state(const data::SampleSource& source) {
  auto text = source.fingerprint();
  if (const auto* shards = dynamic_cast<const data::WebdatasetSource*>(&source)) {
    const auto& index = shards->index();
    for (int64_t i = 0; i < index.num_shards(); ++i) text += fmt::format(" {}", index.shard_mtime_ns(i));
  }
  return digest_of(text);
}

std::string EvaluationData::state() const {
  auto text = fingerprint();
  for (const auto* set : {&test, &train, &validation}) {
    if (*set) text += source_state(*(*set)->source);
  }
  if (pairs) text += source_state(*pairs->source);
  return digest_of(text);
}

EvaluationData open_evaluation_data(const EvaluationTask& task) {
  EvaluationData data;
  if (task.task == "retrieval") {
    data.pairs = open_pairs(task);
    return data;
  }
  data.test = open_set(task, task.data, task.split);
  if (task.task == "zero-shot") {
    const std::vector<std::string> own{""};
    for (const auto& source : task.prompts.empty() ? own : task.prompts) {
      data.prompts.push_back(class_prompts(source, *data.test, task.canonicalize));
    }
    return data;
  }
  const auto& train = task.train.empty() ? task.data : task.train;
  data.train = open_set(task, train, task.train_split);
  if (!task.val_split.empty()) data.validation = open_set(task, train, task.val_split);
  for (const auto* other : {&data.train, &data.validation}) {
    if (*other && (*other)->class_names != data.test->class_names) {
      throw DataError(fmt::format("the classes of {} ({}) and {} ({}) must be the same", (*other)->name,
                                  (*other)->class_names.size(), data.test->name, data.test->class_names.size()));
    }
  }
  return data;
}

}  // namespace contrastive::eval::detail
