#include "adapt_support.h"

#include <filesystem>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>

#include <fmt/format.h>

#include "contrastive/adapt/contact_sheet.h"
#include "contrastive/adapt/embedding_index.h"
#include "contrastive/adapt/retrieval.h"
#include "contrastive/adapt/support_builders.h"
#include "contrastive/adapt/support_set.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/random.h"
#include "contrastive/data/shard_index.h"
#include "contrastive/data/shard_list.h"
#include "contrastive/data/webdataset_source.h"
#include "contrastive/image/image.h"

#include "common/program.h"
#include "common/validators.h"

namespace contrastive::tools {
namespace {

namespace fs = std::filesystem;

void require_output(const std::string& output) {
  if (fs::path(output).extension() != ".safetensors") {
    throw ConfigError(fmt::format("--output {}: must end in .safetensors", output));
  }
  const auto folder = fs::path(output).parent_path();
  if (!folder.empty() && !fs::is_directory(folder)) {
    throw ConfigError(fmt::format("--output: there is no folder {}", folder.string()));
  }
}

int write(const adapt::SupportSet& set, const std::string& output) {
  adapt::write_support_set(output, set);
  fmt::print("{} images of {} classes in {}\n", set.size(), set.num_classes(), output);
  return kDone;
}

/// Fills what tells the model, and writes the set.
int finish(AdaptModel& model, adapt::SupportSet set, const std::string& output) {
  set.model_sha256 = model.fingerprint();
  set.preprocess = model.preprocess_words();
  set.preprocess_sha256 = model.preprocess_sha256();
  return model.is_first() ? write(set, output) : kDone;
}

void report_unreadable(const eval::SkippedSamples& unreadable) {
  for (const auto& each : unreadable.first) fmt::print("  {}: {}\n", each.name, each.reason);
}

int from_split(const SupportArguments& arguments) {
  require_output(arguments.output);
  AdaptModel model(arguments.model);
  adapt::FromSplitOptions options;
  options.shots = arguments.shots;
  options.seed = arguments.seed;
  options.views = arguments.views;
  options.pass = model.image_pass("images");
  auto set =
      adapt::support_from_split(model.model(), model.preprocess(), open_set(arguments.set), options, model.group());
  return finish(model, std::move(set), arguments.output);
}

int from_folder(const SupportArguments& arguments) {
  require_output(arguments.output);
  AdaptModel model(arguments.model);
  adapt::FromFolderOptions options;
  options.max_per_class = arguments.max_per_class;
  options.pass = model.image_pass("images");
  options.pass.skip_bad_samples = true;
  adapt::FromFolderReport report;
  auto set = adapt::support_from_folder(model.model(), model.preprocess(), open_set(arguments.set), options, &report,
                                        model.group());
  if (model.is_first()) {
    fmt::print("left out: {} unreadable, {} repeated\n", report.unreadable.count, report.duplicates);
    report_unreadable(report.unreadable);
  }
  return finish(model, std::move(set), arguments.output);
}

/// What the index holds that is nearest to the classes' texts.
adapt::SupportSet retrieve(AdaptModel& searcher, const SupportArguments& arguments) {
  const adapt::EmbeddingIndex index({arguments.indices.begin(), arguments.indices.end()});
  if (index.model_sha256() != searcher.fingerprint()) {
    throw DataError(fmt::format("the index is of the model {}, but {} is {}", index.model_sha256(),
                                arguments.index_checkpoint.empty() ? "--checkpoint" : "--index-checkpoint",
                                searcher.fingerprint()));
  }
  const auto classes = open_set(arguments.set);
  const auto prompts = AdaptModel::prompts(arguments.prompts, classes);
  const auto classifier = searcher.classifier(prompts, classes, adapt::PromptPooling::mean_direction);
  torch::Tensor excluded;
  if (!arguments.excluded.data.empty()) {
    excluded = searcher.features(open_set(arguments.excluded), "evaluation images").queries.features;
  }
  adapt::RetrievalOptions options;
  options.per_class = arguments.per_class;
  options.min_per_class = arguments.min_per_class;
  options.candidates = arguments.candidates;
  options.duplicate_cosine = arguments.duplicate_cosine;
  options.excluded_cosine = arguments.excluded_cosine;
  options.one_class = !arguments.several_classes;
  adapt::RetrievalReport report;
  auto set = adapt::retrieve_support(index, classifier, prompts, excluded, options, &report, searcher.group());
  set.class_ids = classes.class_ids;
  if (searcher.is_first()) {
    fmt::print(
        "left out: {} near evaluation images, {} better for another class, {} near duplicates; {} taken all the same\n",
        report.excluded, report.other_class, report.duplicates, report.fallbacks);
  }
  return set;
}

std::shared_ptr<const data::SampleSource> open_shards(const std::string& list) {
  const auto shards = data::expand_shard_list(list);
  data::require_shards_exist(shards);
  data::WebdatasetOptions options;
  options.need_caption = false;
  return std::make_shared<data::WebdatasetSource>(data::ShardIndex::open(shards), options);
}

int from_shards(const SupportArguments& arguments) {
  require_output(arguments.output);
  if (arguments.index_checkpoint.empty() != arguments.shards.empty()) {
    throw ConfigError(
        "--index-checkpoint and --shards go together: what another model has found is encoded again from the shards");
  }
  if (arguments.index_checkpoint.empty()) {
    AdaptModel model(arguments.model);
    return finish(model, retrieve(model, arguments), arguments.output);
  }
  auto of_index = arguments.model;
  of_index.checkpoint = arguments.index_checkpoint;
  of_index.model.clear();
  AdaptModel searcher(of_index);
  const auto found = retrieve(searcher, arguments);
  AdaptModel model(arguments.model, searcher);
  eval::SkippedSamples unreadable;
  auto set = adapt::encode_again(model.model(), model.preprocess(), found, *open_shards(arguments.shards),
                                 model.image_pass("images"), &unreadable, model.group());
  if (model.is_first()) {
    fmt::print("encoded again: {} unreadable images left out\n", unreadable.count);
    report_unreadable(unreadable);
  }
  return finish(model, std::move(set), arguments.output);
}

int append(const SupportArguments& arguments) {
  require_output(arguments.output);
  auto all = adapt::read_support_set(arguments.files.front());
  for (size_t i = 1; i < arguments.files.size(); ++i) {
    all = adapt::append(all, adapt::read_support_set(arguments.files[i]));
  }
  return write(all, arguments.output);
}

int cap(const SupportArguments& arguments) {
  require_output(arguments.output);
  return write(adapt::cap_per_class(adapt::read_support_set(arguments.files.front()), arguments.max_per_class),
               arguments.output);
}

/// Images of a data set or of shards, by their keys.
class KeyedImages {
 public:
  explicit KeyedImages(const SupportArguments& arguments) {
    if (arguments.set.data.empty() == arguments.shards.empty()) {
      throw ConfigError("name where the images are: --data DIR (and --split), or --shards LIST");
    }
    source_ = arguments.shards.empty() ? open_set(arguments.set).source : open_shards(arguments.shards);
    for (int64_t i = 0; i < source_->size(); ++i) samples_.emplace(source_->key(i), i);
  }

  /// None if there is no such image, or it can't be read.
  std::optional<image::Image> read(const std::string& wanted) const {
    const auto found = samples_.find(wanted);
    if (found == samples_.end()) return std::nullopt;
    try {
      RandomStream random(/*seed=*/0, RandomPurpose::few_shot, {});
      data::Sample sample;
      source_->read(found->second, random, sample);
      return sample.encoded.empty() ? sample.drawn : image::decode_image(sample.encoded);
    } catch (const DataError&) {
      return std::nullopt;
    }
  }

 private:
  std::shared_ptr<const data::SampleSource> source_;
  std::unordered_map<std::string, int64_t> samples_;
};

int sheet(const SupportArguments& arguments) {
  if (fs::path(arguments.output).extension() != ".png") {
    throw ConfigError(fmt::format("--output {}: must end in .png", arguments.output));
  }
  const auto set = adapt::read_support_set(arguments.files.front());
  const KeyedImages images(arguments);
  adapt::ContactSheetOptions options;
  options.first_class = arguments.first_class;
  if (arguments.max_per_class > 0) options.per_class = arguments.max_per_class;
  int64_t missing = 0;
  const auto picture = adapt::draw_contact_sheet(
      set,
      [&](int64_t row) {
        auto image = images.read(set.rows[static_cast<size_t>(row)].key);
        missing += image ? 0 : 1;
        return image;
      },
      options);
  const auto bytes = image::encode_png(picture);
  write_file_atomically(arguments.output, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  fmt::print("{} x {} pixels in {}\n", picture.width, picture.height, arguments.output);
  if (missing > 0) fmt::print("{} images were not found, or can't be read: grey\n", missing);
  return kDone;
}

int show(const SupportArguments& arguments) {
  for (const auto& file : arguments.files) {
    const auto set = adapt::read_support_set(file);
    fmt::print("{}: {} images of {} classes, {} features, sha256 {}\n", file, set.size(), set.num_classes(),
               set.features.keys.size(1), set.fingerprint());
    fmt::print("  model {}\n  preprocessing {}\n", set.model_sha256, set.preprocess);
    for (const auto& [name, value] : set.made_by) fmt::print("  {}: {}\n", name, value);
    const auto counts = set.features.counts();
    for (int64_t c = 0; c < set.num_classes(); ++c) {
      fmt::print("  {:6} {}\n", counts[c].item<int64_t>(), set.class_names[static_cast<size_t>(c)]);
    }
  }
  return kDone;
}

void add_output(CLI::App& command, SupportArguments& arguments) {
  command.add_option("--output", arguments.output, "the support set: a .safetensors file; a .json goes beside it")
      ->required();
}

void add_set_options(CLI::App& command, SetArguments& set) {
  command.add_option("--data", set.data, "the data set: see docs/evaluation.md")->required();
  command.add_option("--split", set.split)->capture_default_str();
  command.add_option("--class-names", set.class_names, "file in place of the data set's names, or `imagenet`");
  command.add_option("--class-ids", set.class_ids, "file with the id of each class, or `imagenet`");
}

void add_from_folder(CLI::App& support, SupportArguments& arguments) {
  auto* command = support.add_subcommand("from-folder", "all images of class folders: generated, or downloaded");
  add_model_options(*command, arguments.model);
  add_set_options(*command, arguments.set);
  command->add_option("--max-per-class", arguments.max_per_class, "the first images of each class only; 0: all")
      ->check(tools::non_negative());
  add_output(*command, arguments);
}

void add_from_shards(CLI::App& support, SupportArguments& arguments) {
  auto* command = support.add_subcommand(
      "from-shards", "images of an index that lie nearest to the classes' texts: only class names are looked at");
  add_model_options(*command, arguments.model);
  command
      ->add_option("--index", arguments.indices,
                   "what `clip_embed images SHARDS --output FOLDER` wrote; may be repeated")
      ->required()
      ->allow_extra_args(false);
  command->add_option("--index-checkpoint", arguments.index_checkpoint,
                      "the model that made the index, where --checkpoint is another one; then also name --shards");
  command->add_option("--shards", arguments.shards,
                      "the shards of the index, out of which the images found are encoded again with --checkpoint");
  add_set_options(*command, arguments.set);
  command->get_option("--data")->description("the data set whose classes are wanted; its images aren't looked at");
  command->add_option("--prompts", arguments.prompts, "as for clip_eval zero-shot; A+B takes the prompts of both");
  command->add_option("--per-class", arguments.per_class)->check(tools::positive())->capture_default_str();
  command->add_option("--min-per-class", arguments.min_per_class, "what the fallback fills a class up to")
      ->check(tools::positive())
      ->capture_default_str();
  command
      ->add_option("--candidates", arguments.candidates, "best images of each prompt looked at; 0: 4 x per-class + 64")
      ->check(tools::non_negative());
  command->add_option("--duplicate-cosine", arguments.duplicate_cosine, "of images more alike the better one stays")
      ->capture_default_str();
  command->add_flag("--several-classes", arguments.several_classes, "an image may stand for several classes");
  command->add_option("--exclude", arguments.excluded.data, "a data set whose images must not be taken");
  command->add_option("--exclude-split", arguments.excluded.split)->capture_default_str();
  command->add_option("--excluded-cosine", arguments.excluded_cosine, "how like them an image may be")
      ->capture_default_str();
  add_output(*command, arguments);
}

}  // namespace

CLI::App* add_support_commands(CLI::App& app, SupportArguments& arguments) {
  auto* support = app.add_subcommand("support", "make and change support sets");
  support->require_subcommand(1);

  auto* split = support->add_subcommand("from-split", "a few images of each class of a labelled split");
  add_model_options(*split, arguments.model);
  add_set_options(*split, arguments.set);
  split->add_option("--shots", arguments.shots, "images a class")->check(tools::positive())->capture_default_str();
  split->add_option("--seed", arguments.seed)->check(tools::non_negative())->capture_default_str();
  split->add_option("--views", arguments.views, "random crops of each image; 1: the image as in evaluation")
      ->check(tools::positive())
      ->capture_default_str();
  add_output(*split, arguments);

  add_from_folder(*support, arguments);
  add_from_shards(*support, arguments);

  auto* joined =
      support->add_subcommand("append", "join support sets of one model: rows of known classes, new classes");
  joined->add_option("files", arguments.files, "support sets")->required()->expected(2, -1);
  add_output(*joined, arguments);

  auto* capped = support->add_subcommand("cap", "the first images of each class");
  capped->add_option("file", arguments.files, "support set")->required()->expected(1);
  capped->add_option("--per-class", arguments.max_per_class)->required()->check(tools::positive());
  add_output(*capped, arguments);

  auto* drawn = support->add_subcommand("sheet", "a picture of a support set: thumbnails of every class");
  drawn->add_option("file", arguments.files, "support set")->required()->expected(1);
  drawn->add_option("--data", arguments.set.data, "the data set that its images are from");
  drawn->add_option("--split", arguments.set.split)->capture_default_str();
  drawn->add_option("--shards", arguments.shards, "the shards that its images are from");
  drawn->add_option("--per-class", arguments.max_per_class, "thumbnails of a class; without it 10");
  drawn->add_option("--first-class", arguments.first_class, "where the sheet begins; it shows 100 at most");
  drawn->add_option("--output", arguments.output, "a .png file")->required();

  auto* shown = support->add_subcommand("show", "what is in support sets");
  shown->add_option("files", arguments.files, "support sets")->required();
  return support;
}

int run_support_command(const CLI::App& support, const SupportArguments& arguments) {
  const auto name = support.get_subcommands().front()->get_name();
  if (name == "from-split") return from_split(arguments);
  if (name == "from-folder") return from_folder(arguments);
  if (name == "from-shards") return from_shards(arguments);
  if (name == "append") return append(arguments);
  if (name == "sheet") return sheet(arguments);
  return name == "cap" ? cap(arguments) : show(arguments);
}

}  // namespace contrastive::tools
