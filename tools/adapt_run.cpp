#include "adapt_run.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/adapt/adaptation.h"
#include "contrastive/adapt/adaptation_record.h"
#include "contrastive/adapt/adapted_classifier.h"
#include "contrastive/adapt/label_check.h"
#include "contrastive/adapt/support_builders.h"
#include "contrastive/adapt/support_set.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/version.h"
#include "contrastive/core/writer_lock.h"

#include "common/program.h"
#include "common/validators.h"

namespace contrastive::tools {
namespace {

namespace fs = std::filesystem;

/// A support set with what records say about it.
struct NamedSupport {
  adapt::SupportSet set;
  std::string kind;  ///< AdaptationRecord::support
  int64_t shots = 0;
  int64_t seed = 0;

  /// Whether nobody has looked at a label of the task to make it.
  bool is_name_only() const { return kind != "few-shot"; }
};

std::string kind_of(const adapt::SupportSet& set) {
  const auto found = set.made_by.find("builder");
  const auto builder = found == set.made_by.end() ? "" : found->second;
  if (builder == "from-split") return "few-shot";
  if (builder != "from-shards") return "folder";
  return set.made_by.count("searched_with_model") > 0 ? "retrieved by another model" : "retrieved";
}

/// A number that the builder has noted; 0 if it hasn't.
int64_t noted(const adapt::SupportSet& set, const std::string& name) {
  const auto found = set.made_by.find(name);
  return found == set.made_by.end() ? 0 : std::atoll(found->second.c_str());
}

std::map<std::string, std::string> settings_of(const std::string& adapter, const std::vector<std::string>& all) {
  std::map<std::string, std::string> settings;
  for (const auto& each : all) {
    const auto dot = each.find('.');
    const auto equals = each.find('=');
    if (dot == std::string::npos || equals == std::string::npos || equals < dot) {
      throw ConfigError(fmt::format("--set {}: must be ADAPTER.NAME=VALUE, as tip-x.tau=0.5", each));
    }
    if (each.substr(0, dot) == adapter) settings[each.substr(dot + 1, equals - dot - 1)] = each.substr(equals + 1);
  }
  return settings;
}

/// This rank's share of images that every rank has.
adapt::LabelledQueries own_share(const adapt::LabelledQueries& all, const distributed::ProcessGroup& group) {
  const auto size = all.queries.size();
  const auto begin = size * group.rank() / group.size();
  const auto end = size * (group.rank() + 1) / group.size();
  return {all.queries.rows(begin, end), all.labels.slice(0, begin, end)};
}

class Run {
 public:
  explicit Run(const RunArguments& arguments)
      : arguments_(arguments), model_(arguments.model), test_set_(open_set(arguments.test)) {
    if (arguments.output.empty()) return;
    const fs::path output = arguments.output;
    if (model_.is_first()) {
      lock_ = std::make_unique<WriterLock>(output.parent_path() / ("." + output.filename().string() + ".lock"), output);
    }
    if (fs::exists(output)) records_ = adapt::read_records(output);
  }

  int all() {
    test_ = own_share(model_.features(test_set_, "test images", needs_places()), model_.group());
    if (uses(adapt::Protocol::val)) read_validation();
    const auto pooling =
        arguments_.pooling == "mean_score" ? adapt::PromptPooling::mean_score : adapt::PromptPooling::mean_direction;
    const auto prompts = arguments_.prompts.empty() ? std::vector<std::string>{""} : arguments_.prompts;
    for (const auto& source : prompts) {
      classifier_ = model_.classifier(AdaptModel::prompts(source, test_set_), test_set_, pooling);
      if (arguments_.scale > 0) classifier_.scale = arguments_.scale;
      zero_shot();
      without_support();
      for (const auto& file : arguments_.supports) from_file(file);
      for (const auto shots : arguments_.shots) {
        for (int64_t seed = 0; seed < arguments_.seeds; ++seed) from_split(shots, arguments_.first_seed + seed);
      }
    }
    if (!arguments_.output.empty() && model_.is_first()) fmt::print("written to {}\n", arguments_.output);
    return kDone;
  }

 private:
  bool uses(adapt::Protocol protocol) const {
    return std::any_of(arguments_.protocols.begin(), arguments_.protocols.end(),
                       [protocol](const auto& name) { return adapt::parse_protocol(name) == protocol; });
  }

  void read_validation() {
    auto named = arguments_.validation;
    if (named.data.empty()) named.data = arguments_.test.data;
    const auto set = open_set(named);
    require_same_classes(set);
    validation_ = own_share(model_.features(set, "validation images", needs_places()), model_.group());
  }

  void require_same_classes(const data::ClassificationSet& set) const {
    if (set.class_names == test_set_.class_names) return;
    throw DataError(fmt::format("the classes of {} ({}) and {} ({}) must be the same, in the same order", set.name,
                                set.class_names.size(), test_set_.name, test_set_.class_names.size()));
  }

  void zero_shot() {
    adapt::AdaptationRequest request;
    request.adapter = "zero-shot";
    const auto outcome = adapt::adapt_and_test(request, {}, classifier_, test_, nullptr, model_.group());
    zero_shot_accuracy_ = outcome.top1_accuracy;
    keep(record_of(request, outcome, nullptr));
  }

  /// The adapters that texts and images are enough for.
  void without_support() {
    for (const auto& adapter : arguments_.adapters) {
      if (adapter == "zero-shot" || needs_support(adapter)) continue;
      for (const auto& name : arguments_.protocols) {
        auto request = request_of(adapter, name);
        if (request.protocol == adapt::Protocol::support_cv) {
          leave_out(adapter, name, "it has no support set");
          continue;
        }
        refuse_hidden_labels(request.protocol);
        try_adapter(request, nullptr);
      }
    }
  }

  void from_file(const std::string& file) {
    auto set = adapt::read_support_set(file);
    adapt::require_model(set, model_.fingerprint(), model_.preprocess_sha256());
    NamedSupport support{adapt::select_classes(set, test_set_.class_names, test_set_.class_ids), kind_of(set),
                         noted(set, "shots"), noted(set, "seed")};
    if (arguments_.max_per_class > 0) {
      support.set = adapt::cap_per_class(support.set, arguments_.max_per_class);
      if (support.kind == "few-shot") support.shots = std::min(support.shots, arguments_.max_per_class);
    }
    try_adapters(support);
  }

  void from_split(int64_t shots, int64_t seed) {
    if (!train_set_) {
      auto named = arguments_.train;
      if (named.data.empty()) named.data = arguments_.test.data;
      train_set_ = open_set(named);
      require_same_classes(*train_set_);
    }
    adapt::FromSplitOptions options;
    options.shots = shots;
    options.seed = seed;
    options.views = arguments_.views;
    options.pass = model_.image_pass("support images");
    NamedSupport support{
        adapt::support_from_split(model_.model(), model_.preprocess(), *train_set_, options, model_.group()),
        "few-shot", shots, seed};
    try_adapters(support);
  }

  void try_adapters(const NamedSupport& support) {
    check_labels(support);
    for (const auto& adapter : arguments_.adapters) {
      if (!needs_support(adapter)) continue;
      for (const auto& name : arguments_.protocols) {
        const auto request = request_of(adapter, name);
        if (support.is_name_only()) refuse_hidden_labels(request.protocol);
        if (request.protocol == adapt::Protocol::support_cv && !can_cross_validate(support)) {
          leave_out(adapter, name, "a class has a single image, so that there is none to hold out");
          continue;
        }
        try_adapter(request, &support);
      }
    }
  }

  adapt::AdaptationRequest request_of(const std::string& adapter, const std::string& protocol) const {
    adapt::AdaptationRequest request;
    request.adapter = adapter;
    request.settings = settings_of(adapter, arguments_.settings);
    request.protocol = adapt::parse_protocol(protocol);
    request.transductive = arguments_.transductive;
    return request;
  }

  void try_adapter(const adapt::AdaptationRequest& request, const NamedSupport* support) {
    const auto outcome =
        adapt::adapt_and_test(request, support == nullptr ? adapt::SupportFeatures{} : support->set.features,
                              classifier_, test_, validation_ ? &*validation_ : nullptr, model_.group());
    keep(record_of(request, outcome, support));
    save(outcome, adapt::protocol_name(request.protocol));
  }

  static bool can_cross_validate(const NamedSupport& support) {
    return support.set.features.counts().min().item<int64_t>() >= 2;
  }

  void leave_out(const std::string& adapter, const std::string& protocol, const char* reason) const {
    if (model_.is_first()) fmt::print("{}/{}: left out, {}\n", adapter, protocol, reason);
  }

  bool needs_support(const std::string& adapter) const { return adapt::make_adapter(adapter)->needs_support(); }

  bool needs_places() const {
    return std::any_of(arguments_.adapters.begin(), arguments_.adapters.end(),
                       [](const auto& adapter) { return adapt::make_adapter(adapter)->needs_tokens(); });
  }

  void check_labels(const NamedSupport& support) {
    const auto check = adapt::check_labels(support.set.features, classifier_);
    support_accuracy_ = check.support_accuracy;
    if (model_.is_first()) {
      fmt::print("support set: {} images of {} classes, zero-shot accuracy {:.2f} % (test {:.2f} %)\n",
                 support.set.size(), support.set.num_classes(), 100 * check.support_accuracy,
                 100 * zero_shot_accuracy_);
    }
    if (arguments_.accept_labels) return;
    try {
      adapt::require_sane_labels(check, zero_shot_accuracy_, test_set_.source->size());
    } catch (const DataError& error) {
      throw DataError(fmt::format("{} (--accept-labels goes on all the same)", error.what()));
    }
  }

  /// What was made of class names is worth nothing to compare, if labels have chosen the rest.
  void refuse_hidden_labels(adapt::Protocol protocol) const {
    const bool is_labelled = protocol == adapt::Protocol::val || protocol == adapt::Protocol::test_oracle;
    if (!is_labelled || arguments_.labelled_search) return;
    throw ConfigError(fmt::format(
        "--protocol {}: only class names were needed so far (the support set was made from them, or there is none), "
        "but this protocol looks at labelled images; take fixed or support-cv, or say --labelled-search",
        adapt::protocol_name(protocol)));
  }

  adapt::AdaptationRecord record_of(const adapt::AdaptationRequest& request, const adapt::Adaptation& outcome,
                                    const NamedSupport* support) const {
    adapt::AdaptationRecord record;
    record.dataset = test_set_.name;
    record.model = arguments_.model.checkpoint;
    record.model_sha256 = model_.fingerprint();
    record.prompts = classifier_.prompt_name;
    record.prompt_pooling = arguments_.pooling;
    record.prompt_sha256 = classifier_.prompt_sha256;
    record.scale = classifier_.scale;
    record.support = "none";
    if (support != nullptr) {
      record.support = support->kind;
      record.support_sha256 = support->set.fingerprint();
      record.support_rows = support->set.size();
      record.shots = support->shots;
      record.seed = support->seed;
      record.support_accuracy = support_accuracy_;
    }
    record.adapter = request.adapter;
    record.protocol = adapt::protocol_name(request.protocol);
    record.transductive = request.transductive;
    record.settings = outcome.adapter->settings();
    record.num_samples = outcome.num_samples;
    record.top1_accuracy = outcome.top1_accuracy;
    record.mean_per_class_recall = outcome.mean_per_class_recall;
    record.zero_shot_accuracy = zero_shot_accuracy_;
    record.seconds = outcome.fit_seconds + outcome.search_seconds + outcome.score_seconds;
    record.version = version();
    record.command = arguments_.command;
    add_search(outcome, record);
    return record;
  }

  static void add_search(const adapt::Adaptation& outcome, adapt::AdaptationRecord& record) {
    const auto parameters = outcome.adapter->parameters();
    for (size_t i = 0; i < parameters.size(); ++i) record.values.emplace_back(parameters[i].name, outcome.values[i]);
    if (!outcome.search) return;
    const auto& search = *outcome.search;
    record.searched_accuracy = static_cast<double>(search.best_correct()) / static_cast<double>(search.num_samples);
    const auto centre = search.plateau_centre();
    const auto ranges = search.sensitivity();
    for (size_t i = 0; i < parameters.size(); ++i) {
      record.plateau.emplace_back(parameters[i].name, centre[i]);
      record.sensitivity[parameters[i].name] = {ranges[i].lowest, ranges[i].highest};
    }
  }

  void keep(const adapt::AdaptationRecord& record) {
    if (!model_.is_first()) return;
    std::string values;
    for (const auto& [name, value] : record.values) values += fmt::format(" {} {:.4g}", name, value);
    const auto shots = record.shots > 0 ? fmt::format(" {} {}, seed {}", record.shots,
                                                      record.shots == 1 ? "shot" : "shots", record.seed)
                                        : "";
    fmt::print("{} {}{}: acc1 {:.2f} %, mean_per_class_recall {:.2f} %, of {} images{}{}  ({:.1f} s)\n", record.dataset,
               record.method(), shots, 100 * record.top1_accuracy, 100 * record.mean_per_class_recall,
               record.num_samples, values.empty() ? "" : ";", values, record.seconds);
    std::fflush(stdout);
    records_.push_back(record);
    if (arguments_.output.empty()) return;
    std::string text;
    for (const auto& each : records_) text += adapt::to_json(each) + "\n";
    write_file_atomically(arguments_.output, text);
  }

  void save(const adapt::Adaptation& outcome, const std::string& protocol) const {
    if (arguments_.save.empty() || !model_.is_first()) return;
    std::shared_ptr<adapt::Adapter> copy = adapt::make_adapter(outcome.adapter->name(), outcome.adapter->settings());
    copy->restore(outcome.adapter->state());
    adapt::AdaptedClassifier(std::move(copy), outcome.values, test_set_.class_names, model_.fingerprint(),
                             {{"protocol", protocol}, {"prompts", classifier_.prompt_name}})
        .save(arguments_.save);
  }

  const RunArguments& arguments_;
  AdaptModel model_;
  std::unique_ptr<WriterLock> lock_;  ///< of the results file: two runs would lose each other's lines
  data::ClassificationSet test_set_;
  std::optional<data::ClassificationSet> train_set_;
  adapt::TextClassifier classifier_;
  adapt::LabelledQueries test_;
  std::optional<adapt::LabelledQueries> validation_;
  std::vector<adapt::AdaptationRecord> records_;
  double zero_shot_accuracy_ = 0;
  double support_accuracy_ = 0;
};

void check(const RunArguments& arguments) {
  const auto& known = adapt::adapter_names();
  for (const auto& adapter : arguments.adapters) {
    if (std::find(known.begin(), known.end(), adapter) == known.end()) {
      throw ConfigError(fmt::format("--adapter {}: there are {}", adapter, fmt::join(known, ", ")));
    }
    const bool needs_support = adapt::make_adapter(adapter, settings_of(adapter, arguments.settings))->needs_support();
    if (needs_support && arguments.supports.empty() && arguments.shots.empty()) {
      throw ConfigError(fmt::format(
          "name what {} shall adapt with: --support FILE (see clip_adapt support), or --shots 1,2,4", adapter));
    }
  }
  for (const auto& each : arguments.settings) {
    const auto adapter = each.substr(0, each.find('.'));
    settings_of(adapter, {each});
    if (std::find(arguments.adapters.begin(), arguments.adapters.end(), adapter) == arguments.adapters.end()) {
      throw ConfigError(fmt::format("--set {}: --adapter doesn't name {}", each, adapter));
    }
  }
  for (const auto& protocol : arguments.protocols) adapt::parse_protocol(protocol);
  const bool is_one = arguments.adapters.size() == 1 && arguments.protocols.size() == 1 &&
                      arguments.supports.size() + arguments.shots.size() <= 1 && arguments.prompts.size() < 2;
  if (!arguments.save.empty() && (!is_one || (!arguments.shots.empty() && arguments.seeds > 1))) {
    throw ConfigError("--save needs one adapter, one protocol, one support set and one kind of prompts");
  }
  for (const auto* file : {&arguments.output, &arguments.save}) {
    const auto folder = fs::path(*file).parent_path();
    if (!folder.empty() && !fs::is_directory(folder)) {
      throw ConfigError(fmt::format("there is no folder {} for {}", folder.string(), *file));
    }
  }
}

}  // namespace

void add_run_options(CLI::App& command, RunArguments& arguments) {
  add_model_options(command, arguments.model);
  command.add_option("--data", arguments.test.data, "the data set to test on: see docs/evaluation.md")->required();
  command.add_option("--split", arguments.test.split)->capture_default_str();
  command.add_option("--class-names", arguments.test.class_names,
                     "file in place of the data set's names, or `imagenet`");
  command.add_option("--class-ids", arguments.test.class_ids, "file with the id of each class, or `imagenet`");
  command.add_option("--support", arguments.supports, "a support-set file; may be repeated")->allow_extra_args(false);
  command.add_option("--max-per-class", arguments.max_per_class, "take the first rows of each class only; 0: all")
      ->check(tools::non_negative());
  command.add_option("--shots", arguments.shots, "images a class, drawn from --train-split: 1,2,4,8,16")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(tools::positive());
  command.add_option("--seeds", arguments.seeds, "draws of them")->check(tools::positive())->capture_default_str();
  command.add_option("--first-seed", arguments.first_seed)->check(tools::non_negative())->capture_default_str();
  command.add_option("--views", arguments.views, "random crops of each drawn image; 1: the image as in evaluation")
      ->check(tools::positive())
      ->capture_default_str();
  command.add_option("--train", arguments.train.data, "the data set that --shots draws from; without it --data");
  command.add_option("--train-split", arguments.train.split)->capture_default_str();
  command.add_option("--val", arguments.validation.data, "the data set of the protocol val; without it --data");
  command.add_option("--val-split", arguments.validation.split)->capture_default_str();
  command
      .add_option("--adapter", arguments.adapters, fmt::format("any of {}", fmt::join(adapt::adapter_names(), ", ")))
      ->delimiter(',')
      ->allow_extra_args(false)
      ->required();
  command.add_option("--set", arguments.settings, "an adapter's option, as tip-x.tau=0.5; may be repeated")
      ->allow_extra_args(false);
  command
      .add_option("--protocol", arguments.protocols,
                  "how hyper-parameters are found: fixed, support-cv, val, test-oracle")
      ->delimiter(',')
      ->allow_extra_args(false);
  command
      .add_option("--prompts", arguments.prompts,
                  "as for clip_eval zero-shot; A+B takes the prompts of both (CuPL+e); may be repeated")
      ->allow_extra_args(false);
  command.add_option("--pooling", arguments.pooling, "of a class's prompts; mean_score is VisDesc's")
      ->check(CLI::IsMember({"mean_direction", "mean_score"}))
      ->capture_default_str();
  command
      .add_option(
          "--scale", arguments.scale,
          "what cosines with the texts are multiplied by; 0: the model's own logit scale (100 for CLIP's models)")
      ->check(tools::non_negative())
      ->capture_default_str();
  command.add_flag("--labelled-search", arguments.labelled_search,
                   "allow protocols that look at labels, for support sets that were made from class names alone");
  command.add_flag("--accept-labels", arguments.accept_labels,
                   "go on although the support set's labels seem to be wrong");
  command.add_flag("--transductive", arguments.transductive,
                   "let TIP-X's ranges be those of all test images, as published");
  command.add_option("--output", arguments.output, "results file, a JSON object a line; new results are added");
  command.add_option("--save", arguments.save, "keep the adapted classifier (.safetensors) for clip_adapt predict");
}

int run_adapters(const RunArguments& arguments) {
  check(arguments);
  return Run(arguments).all();
}

}  // namespace contrastive::tools
