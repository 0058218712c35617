#include "contrastive/adapt/retrieval.h"

#include <algorithm>
#include <limits>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"
#include "contrastive/eval/search.h"

namespace contrastive::adapt {
namespace {

constexpr size_t kMaxNamed = 10;
constexpr int64_t kTile = 4096;

/// An image that a class might take.
struct Candidate {
  int64_t row = 0;
  float score = 0;
  int64_t prompt = 0;  ///< number of the prompt it scores highest for
};

bool is_better(const Candidate& a, const Candidate& b) {
  return a.score != b.score ? a.score > b.score : a.row < b.row;
}

void check(const RetrievalOptions& options) {
  if (options.per_class < 1) {
    throw ConfigError(fmt::format("[from-shards] per_class must be at least 1, but is {}", options.per_class));
  }
  if (options.min_per_class < 1 || options.min_per_class > options.per_class) {
    throw ConfigError(fmt::format("[from-shards] min_per_class must be in [1, {}], per_class, but is {}",
                                  options.per_class, options.min_per_class));
  }
  if (options.candidates != 0 && options.candidates < options.per_class) {
    throw ConfigError(fmt::format("[from-shards] candidates must be at least per_class, {}, but is {}",
                                  options.per_class, options.candidates));
  }
}

/// The best of this rank's share of the rows. [P, k] with -1 and -inf where the share has fewer.
eval::SearchResult search_share(const EmbeddingIndex& index, const torch::Tensor& prompts, int64_t k,
                                const distributed::ProcessGroup& group) {
  const auto first = index.size() * group.rank() / group.size();
  const auto last = index.size() * (group.rank() + 1) / group.size();
  std::vector<torch::Tensor> rows{at::full({prompts.size(0), k}, -1, at::kLong)};
  std::vector<torch::Tensor> scores{at::full({prompts.size(0), k}, -std::numeric_limits<float>::infinity())};
  for (const auto& part : index.parts()) {
    const auto begin = std::clamp<int64_t>(first - part.first_row, 0, part.features.size(0));
    const auto end = std::clamp<int64_t>(last - part.first_row, 0, part.features.size(0));
    if (begin >= end) continue;
    auto found = eval::search(prompts, part.features.slice(0, begin, end), k);
    rows.insert(rows.end() - 1, found.indices + (part.first_row + begin));
    scores.insert(scores.end() - 1, found.scores.nan_to_num(-std::numeric_limits<double>::infinity()));
  }
  const auto all = at::cat(scores, 1);
  const auto kept = all.argsort(/*stable=*/true, /*dim=*/1, /*descending=*/true).slice(1, 0, k);
  return {at::cat(rows, 1).gather(1, kept), all.gather(1, kept)};
}

/// The best rows of every prompt: the same on all ranks, whatever share of the rows each has looked at. [P, k]
eval::SearchResult search_index(const EmbeddingIndex& index, const torch::Tensor& prompts, int64_t k,
                                const distributed::ProcessGroup& group) {
  k = std::min(k, index.size());
  const auto own = search_share(index, prompts, k, group);
  const auto of_all = [&](const torch::Tensor& part) {  // [P, W k], in the order of the rows
    return at::cat(group.all_gather(part.contiguous()).chunk(group.size()), 1);
  };
  const auto scores = of_all(own.scores);
  const auto kept = scores.argsort(/*stable=*/true, /*dim=*/1, /*descending=*/true).slice(1, 0, k);
  return {of_all(own.indices).gather(1, kept), scores.gather(1, kept)};
}

/// The candidates of every class, best first.
std::vector<std::vector<Candidate>> merge_prompts(const eval::SearchResult& found, const torch::Tensor& prompt_class,
                                                  int64_t num_classes) {
  std::vector<std::unordered_map<int64_t, Candidate>> best(static_cast<size_t>(num_classes));
  const auto rows = found.indices.contiguous();
  const auto scores = found.scores.contiguous();
  const auto k = rows.size(1);
  for (int64_t prompt = 0; prompt < rows.size(0); ++prompt) {
    auto& own = best[static_cast<size_t>(prompt_class[prompt].item<int64_t>())];
    for (int64_t i = prompt * k; i < (prompt + 1) * k; ++i) {
      const Candidate candidate{rows.const_data_ptr<int64_t>()[i], scores.const_data_ptr<float>()[i], prompt};
      if (!(candidate.score >= -2)) continue;  // a row that isn't finite
      const auto [place, is_new] = own.emplace(candidate.row, candidate);
      if (!is_new && candidate.score > place->second.score) place->second = candidate;
    }
  }
  std::vector<std::vector<Candidate>> classes;
  for (const auto& own : best) {
    auto& list = classes.emplace_back();
    for (const auto& [row, candidate] : own) list.push_back(candidate);
    std::sort(list.begin(), list.end(), is_better);
  }
  return classes;
}

/// What decides whether a class may take an image.
class CandidateRows {
 public:
  /// `rows` [U]: all candidates, each once. Every rank looks at its share of them.
  CandidateRows(const EmbeddingIndex& index, const torch::Tensor& rows, const TextClassifier& classifier,
                const torch::Tensor& excluded, const RetrievalOptions& options, const distributed::ProcessGroup& group)
      : classes_(at::zeros({rows.numel()}, at::kLong)), is_excluded_(at::zeros({rows.numel()}, at::kLong)) {
    const auto count = rows.numel();
    for (int64_t i = 0; i < count; ++i) places_.emplace(rows[i].item<int64_t>(), i);
    const auto prompts = classifier.prompts.to(at::kCPU, at::kFloat).t().contiguous();  // [E, P]
    const auto last = count * (group.rank() + 1) / group.size();
    for (auto begin = count * group.rank() / group.size(); begin < last; begin += kTile) {
      const auto end = std::min(last, begin + kTile);
      const auto features = index.features(rows.slice(0, begin, end));
      classes_.slice(0, begin, end).copy_(best_classes(features.matmul(prompts), classifier));
      if (excluded.defined()) is_excluded_.slice(0, begin, end).copy_(is_near(features, excluded, options));
    }
    group.all_reduce(classes_);
    group.all_reduce(is_excluded_);
  }

  /// The class of the prompt that an image scores highest for; of equal ones the lowest.
  int64_t best_class(int64_t row) const { return value(classes_, row); }

  /// Whether it is nearly an evaluation image.
  bool is_excluded(int64_t row) const { return value(is_excluded_, row) != 0; }

 private:
  static torch::Tensor best_classes(const torch::Tensor& scores, const TextClassifier& classifier) {
    const auto of_class = at::full({scores.size(0), classifier.num_classes()}, -std::numeric_limits<float>::infinity());
    return of_class.scatter_reduce(1, classifier.prompt_class.expand_as(scores), scores, "amax").argmax(1);
  }

  static torch::Tensor is_near(const torch::Tensor& features, const torch::Tensor& excluded,
                               const RetrievalOptions& options) {
    auto nearest = at::full({features.size(0)}, -1.0);
    for (const auto& part : excluded.split(kTile)) {
      nearest = nearest.maximum(std::get<0>(features.matmul(part.to(at::kFloat).t()).max(1)));
    }
    return nearest > options.excluded_cosine;
  }

  int64_t value(const torch::Tensor& values, int64_t row) const {
    return values.const_data_ptr<int64_t>()[places_.at(row)];
  }

  std::unordered_map<int64_t, int64_t> places_;  ///< of a row among the candidates
  torch::Tensor classes_;                        ///< [U]
  torch::Tensor is_excluded_;                    ///< [U]
};

/// All candidates, each once, rising.
torch::Tensor all_rows(const std::vector<std::vector<Candidate>>& classes) {
  std::set<int64_t> rows;
  for (const auto& own : classes) {
    for (const auto& candidate : own) rows.insert(candidate.row);
  }
  return at::tensor(std::vector<int64_t>(rows.begin(), rows.end()), at::kLong);
}

torch::Tensor rows_of(const std::vector<Candidate>& candidates) {
  std::vector<int64_t> rows;
  for (const auto& candidate : candidates) rows.push_back(candidate.row);
  return at::tensor(rows, at::kLong);
}

/// Picks the images of one class out of its candidates.
class ClassPick {
 public:
  ClassPick(const EmbeddingIndex& index, const std::vector<Candidate>& candidates, const RetrievalOptions& options)
      : index_(index), candidates_(candidates), options_(options) {}

  /// Takes the best images that the rules allow.
  void pick(int64_t class_index, const CandidateRows& all, RetrievalReport& report) {
    features_ = index_.features(rows_of(candidates_));
    for (size_t i = 0; i < candidates_.size() && size() < options_.per_class; ++i) {
      const auto row = candidates_[i].row;
      if (all.is_excluded(row)) {
        ++report.excluded;
      } else if (options_.one_class && all.best_class(row) != class_index) {
        ++report.other_class;
        of_others_.push_back(i);
      } else if (is_alike(i)) {
        ++report.duplicates;
        alike_.push_back(i);
      } else {
        picked_.push_back(i);
      }
    }
    num_regular_ = picked_.size();
    features_.reset();
  }

  /// Fills up to the minimum with what the rules have left out: first images that are better for other classes, then
  /// near duplicates. `taken`: rows of all classes so far, none of which gets a second class.
  void fill(std::unordered_set<int64_t>& taken, RetrievalReport& report) {
    if (size() >= options_.min_per_class) return;
    features_ = index_.features(rows_of(candidates_));
    for (const auto& [reserve, may_be_alike] : {std::pair{&of_others_, false}, {&of_others_, true}, {&alike_, true}}) {
      for (const auto i : *reserve) {
        if (size() >= options_.min_per_class) break;
        const bool is_taken = options_.one_class && taken.count(candidates_[i].row) > 0;
        if (is_taken || (!may_be_alike && is_alike(i))) continue;
        taken.insert(candidates_[i].row);
        picked_.push_back(i);
        ++report.fallbacks;
      }
    }
    features_.reset();
  }

  int64_t size() const { return static_cast<int64_t>(picked_.size()); }
  const Candidate& picked(size_t number) const { return candidates_[picked_[number]]; }
  bool is_fallback(size_t number) const { return number >= num_regular_; }

 private:
  /// Whether an image that was picked is nearly the same.
  bool is_alike(size_t i) const {
    if (picked_.empty()) return false;
    const std::vector<int64_t> rows(picked_.begin(), picked_.end());
    const auto cosines = features_.index_select(0, at::tensor(rows, at::kLong)).mv(features_[static_cast<int64_t>(i)]);
    return cosines.max().item<double>() > options_.duplicate_cosine;
  }

  const EmbeddingIndex& index_;
  const std::vector<Candidate>& candidates_;
  const RetrievalOptions& options_;
  torch::Tensor features_;         ///< [n, E] of the candidates, while they are looked at
  std::vector<size_t> picked_;     ///< positions among the candidates
  std::vector<size_t> of_others_;  ///< those that were left out, by their reason
  std::vector<size_t> alike_;
  size_t num_regular_ = 0;  ///< picked without the fallback
};

/// The images of every class.
std::vector<ClassPick> pick_images(const EmbeddingIndex& index, const std::vector<std::vector<Candidate>>& classes,
                                   const CandidateRows& all, const RetrievalOptions& options, RetrievalReport& report) {
  std::vector<ClassPick> picks;
  std::unordered_set<int64_t> taken;
  for (size_t c = 0; c < classes.size(); ++c) {
    auto& pick = picks.emplace_back(index, classes[c], options);
    pick.pick(static_cast<int64_t>(c), all, report);
    for (size_t i = 0; i < static_cast<size_t>(pick.size()); ++i) taken.insert(pick.picked(i).row);
  }
  for (auto& pick : picks) pick.fill(taken, report);
  return picks;
}

std::vector<std::string> texts_of(const eval::ClassPrompts& prompts) {
  std::vector<std::string> texts;
  for (const auto& own : prompts.prompts) texts.insert(texts.end(), own.begin(), own.end());
  return texts;
}

void refuse(const std::vector<std::string>& poor, const RetrievalOptions& options) {
  const auto shown =
      std::vector<std::string>(poor.begin(), poor.begin() + static_cast<int64_t>(std::min(poor.size(), kMaxNamed)));
  throw DataError(
      fmt::format("[from-shards] {} classes have fewer than {} images (min_per_class): {}{}; more candidates, "
                  "a larger index or images for several classes may help",
                  poor.size(), options.min_per_class, fmt::join(shown, ", "), poor.size() > kMaxNamed ? ", ..." : ""));
}

}  // namespace

SupportSet retrieve_support(const EmbeddingIndex& index, const TextClassifier& classifier,
                            const eval::ClassPrompts& prompts, const torch::Tensor& excluded,
                            const RetrievalOptions& options, RetrievalReport* report,
                            const distributed::ProcessGroup& group) {
  check(options);
  const auto num_classes = classifier.num_classes();
  const auto texts = texts_of(prompts);
  TORCH_CHECK(static_cast<int64_t>(texts.size()) == classifier.prompts.size(0), "[from-shards] there are ",
              texts.size(), " prompts and ", classifier.prompts.size(0), " embeddings of prompts");
  if (classifier.prompts.size(1) != index.embed_dim()) {
    throw DataError(fmt::format("[from-shards] the index has {} features, but the prompts {}", index.embed_dim(),
                                classifier.prompts.size(1)));
  }
  const auto k = options.candidates > 0 ? options.candidates : 4 * options.per_class + 64;
  const auto found = search_index(index, classifier.prompts.to(at::kCPU, at::kFloat), k, group);
  const auto classes = merge_prompts(found, classifier.prompt_class, num_classes);
  const CandidateRows all(index, all_rows(classes), classifier, excluded, options, group);

  SupportSet set;
  RetrievalReport own_report;
  const auto picks = pick_images(index, classes, all, options, own_report);
  std::vector<int64_t> rows;
  std::vector<int64_t> labels;
  std::vector<std::string> poor;
  for (int64_t c = 0; c < num_classes; ++c) {
    const auto& pick = picks[static_cast<size_t>(c)];
    if (pick.size() < options.min_per_class) {
      poor.push_back(fmt::format("{} ({})", classifier.class_names[static_cast<size_t>(c)], pick.size()));
    }
    for (size_t i = 0; i < static_cast<size_t>(pick.size()); ++i) {
      const auto& [row, score, prompt] = pick.picked(i);
      set.rows.push_back({index.folder(row), index.name(row), texts[static_cast<size_t>(prompt)], score,
                          pick.is_fallback(i) ? "fallback" : ""});
      rows.push_back(row);
      labels.push_back(c);
    }
  }
  if (!poor.empty()) refuse(poor, options);
  set.features =
      SupportFeatures{index.features(at::tensor(rows, at::kLong)), at::tensor(labels, at::kLong), num_classes, {}};
  set.class_names = classifier.class_names;
  set.model_sha256 = index.model_sha256();
  set.made_by = {{"builder", "from-shards"},
                 {"index_rows", fmt::format("{}", index.size())},
                 {"prompts", prompts.name},
                 {"prompt_sha256", prompts.fingerprint()},
                 {"per_class", fmt::format("{}", options.per_class)},
                 {"min_per_class", fmt::format("{}", options.min_per_class)},
                 {"candidates", fmt::format("{}", k)},
                 {"duplicate_cosine", fmt::format("{}", options.duplicate_cosine)},
                 {"excluded_cosine", excluded.defined() ? fmt::format("{}", options.excluded_cosine) : "none"},
                 {"one_class", options.one_class ? "yes" : "no"}};
  set.features.check();
  if (report != nullptr) *report = own_report;
  return set;
}

}  // namespace contrastive::adapt
