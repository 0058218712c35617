#include "eval/evaluation_context.h"

#include <filesystem>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/safetensors.h"
#include "contrastive/data/embedding_cache.h"

#include "eval/agree.h"
#include "eval/fingerprint.h"
#include "eval/stopwatch.h"

namespace contrastive::eval::detail {
namespace {

namespace fs = std::filesystem;

/// A classifier in a file, or nothing if there is none that can be read.
std::optional<ClassEmbeddings> read_classifier(const fs::path& path, const ClassPrompts& prompts, int64_t embed_dim) {
  if (!fs::exists(path)) return std::nullopt;
  try {
    const SafetensorsFile file(path);
    ClassEmbeddings classifier{file.tensor("rows").clone(), file.tensor("row_of").clone()};
    const auto rows = classifier.rows.size(0);
    const bool fits = classifier.rows.sizes() == at::IntArrayRef({rows, embed_dim}) &&
                      classifier.row_of.sizes() == at::IntArrayRef({prompts.num_classes()}) && rows > 0 &&
                      classifier.row_of.min().item<int64_t>() >= 0 && classifier.row_of.max().item<int64_t>() < rows;
    if (fits) return classifier;
  } catch (const std::exception&) {
  }
  return std::nullopt;  // damaged: made anew
}

/// The first rank's classifier on every rank; nothing if it has none.
std::optional<ClassEmbeddings> share(std::optional<ClassEmbeddings> classifier, const ClassPrompts& prompts,
                                     int64_t embed_dim, const distributed::ProcessGroup& group) {
  if (group.is_alone()) return classifier;
  const auto rows = group.broadcast_text(classifier ? std::to_string(classifier->rows.size(0)) : "");
  if (rows.empty()) return std::nullopt;
  if (group.rank() != 0) {
    classifier =
        ClassEmbeddings{at::empty({std::stoll(rows), embed_dim}), at::empty({prompts.num_classes()}, at::kLong)};
  }
  group.broadcast(classifier->rows);
  group.broadcast(classifier->row_of);
  return classifier;
}

}  // namespace

const text::Tokenizer& EvaluationContext::need_tokenizer() const {
  if (!tokenizer) throw ConfigError("[evaluation] the task needs a tokenizer, but the model has none");
  return *tokenizer;
}

const std::string& EvaluationContext::model_digest() {
  if (!model_digest_) model_digest_ = model_fingerprint(*model, preprocess);
  return *model_digest_;
}

const std::string& EvaluationContext::text_digest() {
  if (!text_digest_) text_digest_ = text_fingerprint(*model);
  return *text_digest_;
}

std::string EvaluationContext::preprocessing() const {
  image::TrainCropOptions none;
  none.kind = image::TrainCrop::none;
  return data::cached_preprocessing(preprocess, none);
}

ImagePassOptions EvaluationContext::image_pass(FeatureStage stage) const {
  ImagePassOptions pass;
  pass.stage = stage;
  pass.batch_size = options.batch_size;
  pass.workers = options.workers;
  pass.bf16 = options.bf16;
  pass.skip_bad_samples = options.skip_bad_samples;
  pass.on_progress = progress("images");
  return pass;
}

std::function<void(int64_t, int64_t)> EvaluationContext::progress(const std::string& what) const {
  if (!options.on_progress) return {};
  return [this, what](int64_t done, int64_t total) { options.on_progress(what, done, total); };
}

EvaluationResult EvaluationContext::new_result(const EvaluationTask& task, const EvaluationData& data) const {
  EvaluationResult result;
  result.name = task.name;
  result.dataset = data.name();
  result.origin["data_sha256"] = data.fingerprint();
  result.origin["split"] = task.split;
  result.origin["precision"] = precision();
  result.origin["preprocessing"] = preprocessing();
  if (model_digest_) result.origin["model_sha256"] = *model_digest_;
  return result;
}

ClassEmbeddings EvaluationContext::classifier(const ClassPrompts& prompts, double& prompts_per_s) {
  const auto& words = need_tokenizer();
  ZeroShotOptions build;
  build.batch_size = options.batch_size;
  build.bf16 = options.bf16;
  build.on_prompts = progress("prompts");
  const auto timed_build = [&] {
    const Stopwatch watch;
    auto built = build_classifier(model, words, prompts, build, group);
    prompts_per_s = static_cast<double>(built.num_prompts) / watch.seconds();
    return built;
  };
  prompts_per_s = 0;
  if (options.cache.empty()) return timed_build();
  const auto& config = model->config();
  const auto key = digest_of(fmt::format("{} {} {} {}", text_digest(),
                                         data::tokenizer_fingerprint(words, config.text_cfg.context_length),
                                         prompts.fingerprint(), precision()));
  const auto file = fs::path(options.cache) / "classifiers" / (key.substr(0, 32) + ".safetensors");
  std::optional<ClassEmbeddings> found;
  if (group.rank() == 0) found = read_classifier(file, prompts, config.embed_dim);
  found = share(std::move(found), prompts, config.embed_dim, group);
  if (!found) {
    found = timed_build();
    agree(group, [&] {
      if (group.rank() != 0) return;
      fs::create_directories(file.parent_path());
      write_safetensors(file, {{"rows", found->rows.cpu().contiguous()}, {"row_of", found->row_of.cpu().contiguous()}},
                        {{"prompts", prompts.name}, {"key", key}});
    });
  }
  found->to(model->logit_scale.device());
  return *found;
}

std::string result_name(const EvaluationTask& task, const EvaluationData& data, size_t number) {
  if (data.prompts.size() < 2) return task.name;
  auto name = fs::path(data.prompts[number].name).stem().string();
  for (size_t i = 0; i < number; ++i) {
    if (fs::path(data.prompts[i].name).stem().string() == name) name += fmt::format("_{}", number);
  }
  return fmt::format("{}_{}", task.name, name);
}

}  // namespace contrastive::eval::detail
