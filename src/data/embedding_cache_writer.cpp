#include <algorithm>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/writer_lock.h"
#include "contrastive/data/embedding_cache.h"

#include "data/embedding_cache_file.h"

namespace contrastive::data {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxReported = 10;

fs::path made_folder(const fs::path& folder, const CacheDescription& description) {
  detail::check_description(description);
  make_folder(folder);
  return folder;
}

void require_same(const fs::path& folder, const CacheDescription& before, const CacheDescription& now) {
  const auto found = detail::differences(before, now);
  if (found.empty()) return;
  throw ConfigError(fmt::format("[{}] holds a cache that was made otherwise: {}; remove it or choose another place",
                                folder.string(), fmt::join(found, "; ")));
}

/// The rows in the cache's dtype; those of missing samples are zeros.
torch::Tensor stored_features(const torch::Tensor& features, const CachedSamples& samples, int64_t first_sample,
                              const CacheDescription& description) {
  auto rows = features.detach().to(at::kCPU).to(description.dtype, /*non_blocking=*/false, /*copy=*/true).contiguous();
  for (const auto& missing : samples.missing) rows[missing.sample - first_sample].zero_();
  const auto is_bad = rows.isfinite().logical_not().flatten(1).any(1);  // [n]
  if (!is_bad.any().item<bool>()) return rows;
  const auto row = is_bad.to(at::kInt).argmax().item<int64_t>();
  const bool fits_elsewhere = features[row].isfinite().all().item<bool>();
  throw DataError(fmt::format("sample {}: {}", samples.keys[static_cast<size_t>(row)],
                              fits_elsewhere
                                  ? fmt::format("its features are too large for {} (bf16 and fp32 hold them)",
                                                detail::dtype_name(description.dtype))
                                  : std::string("its features are not finite")));
}

void check_samples(const CachedSamples& samples, int64_t first_sample, int64_t size,
                   const CacheDescription& description) {
  int64_t captions = 0, without = 0;
  for (const auto count : samples.num_captions) {
    captions += count;
    without += count == 0;
  }
  const auto of = [](const auto& values) { return static_cast<int64_t>(values.size()); };
  TORCH_CHECK(of(samples.keys) == size && of(samples.num_captions) == size && of(samples.lengths) == captions &&
                  of(samples.tokens) == captions * description.context_length && of(samples.missing) == without,
              "[write_part] expected ", size, " samples with keys, captions and ", description.context_length,
              " ids a caption, but there are ", of(samples.keys), " keys, ", of(samples.num_captions),
              " numbers of captions that make ", captions, ", ", of(samples.lengths), " lengths, ", of(samples.tokens),
              " ids and ", of(samples.missing), " missing samples for ", without, " without captions");
  for (const auto& missing : samples.missing) {
    const auto row = missing.sample - first_sample;
    TORCH_CHECK(row >= 0 && row < size && samples.num_captions[static_cast<size_t>(row)] == 0, "[write_part] sample ",
                missing.sample, " is missing, but has captions or lies outside the part");
  }
}

}  // namespace

void CachedSamples::append(CachedSamples&& others) {
  const auto add = [](auto& to, auto& from) {
    to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
  };
  add(keys, others.keys);
  add(num_captions, others.num_captions);
  add(tokens, others.tokens);
  add(lengths, others.lengths);
  add(missing, others.missing);
}

struct EmbeddingCacheWriter::Impl {
  Impl(fs::path cache_folder, const CacheDescription& cache_description)
      : folder(made_folder(cache_folder, cache_description)),
        description(cache_description),
        lock(folder / detail::kLockFile, folder) {
    const auto of_cache = folder / detail::kCacheFile, unfinished = folder / detail::kUnfinishedFile;
    remove_leftovers();
    if (fs::exists(of_cache)) {
      const auto manifest = detail::manifest_from_text(read_text_file(of_cache), of_cache.string());
      require_same(folder, manifest.description, description);
      is_complete = true;
      fs::remove(unfinished);  // of a run that was killed before it could
    } else if (fs::exists(unfinished)) {
      require_same(folder, detail::description_from_text(read_text_file(unfinished), unfinished.string()), description);
    } else {
      require_empty();
      write_file_atomically(unfinished, detail::to_text(description));
    }
    find_parts();
  }

  /// What a writer that was killed while it wrote has left beside the places of its files.
  void remove_leftovers() const {
    std::vector<fs::path> leftovers;
    for (const auto& entry : fs::directory_iterator(folder)) {
      const auto name = entry.path().filename().string();
      const bool is_ours = name.starts_with("part_") || name.starts_with(detail::kCacheFile) ||
                           name.starts_with(detail::kUnfinishedFile);
      if (is_ours && name.find(".partial-") != std::string::npos) leftovers.push_back(entry.path());
    }
    for (const auto& file : leftovers) fs::remove(file);
  }

  void require_empty() const {
    for (const auto& entry : fs::directory_iterator(folder)) {
      if (entry.path().filename() == detail::kLockFile) continue;
      throw ConfigError(fmt::format("[{}] holds other files ({}); choose an empty or a new folder", folder.string(),
                                    entry.path().filename().string()));
    }
  }

  void find_parts() {
    const auto parts = detail::num_parts(description);
    while (next_part < parts && fs::exists(folder / detail::part_name(next_part))) {
      add_part(detail::CachePart(folder, description, next_part), "");
    }
    if (is_complete && next_part < parts) {
      throw DataError(fmt::format("[{}] is missing", (folder / detail::part_name(next_part)).string()));
    }
  }

  void add_part(const detail::CachePart& part, std::string sha256) {
    const auto file = folder / detail::part_name(next_part);
    files.push_back({static_cast<int64_t>(fs::file_size(file)), std::move(sha256)});
    report.num_samples += detail::part_size(description, next_part);
    report.bytes += files.back().bytes;
    report.num_missing += part.num_missing();
    for (int64_t i = 0; i < part.num_missing(); ++i) {
      const auto missing = part.missing(i);
      ++report.missing_by_reason[missing.reason];
      if (report.first_missing.size() == kMaxReported) continue;
      const auto row = missing.sample - next_part * description.samples_per_part;
      report.first_missing.push_back(fmt::format("{}: {}", part.key(row), missing.message));
    }
    ++next_part;
  }

  fs::path folder;
  CacheDescription description;
  WriterLock lock;
  std::vector<detail::CacheManifest::File> files;  ///< of the parts; no SHA-256 of those that earlier runs wrote
  CacheReport report;                              ///< of the parts so far
  int64_t next_part = 0;
  bool is_complete = false;
};

EmbeddingCacheWriter::EmbeddingCacheWriter(fs::path folder, const CacheDescription& description)
    : impl_(std::make_unique<Impl>(std::move(folder), description)) {}

EmbeddingCacheWriter::~EmbeddingCacheWriter() = default;

int64_t EmbeddingCacheWriter::next_sample() const {
  const auto& description = impl_->description;
  return std::min(description.num_samples, impl_->next_part * description.samples_per_part);
}

int64_t EmbeddingCacheWriter::part_end() const {
  return std::min(impl_->description.num_samples, next_sample() + impl_->description.samples_per_part);
}

int64_t EmbeddingCacheWriter::num_missing() const {
  return impl_->report.num_missing;
}

bool EmbeddingCacheWriter::is_complete() const {
  return impl_->is_complete;
}

void EmbeddingCacheWriter::write_part(const torch::Tensor& features, const CachedSamples& samples) {
  auto& impl = *impl_;
  const auto& description = impl.description;
  const auto first = next_sample(), size = part_end() - first;
  const std::vector<int64_t> shape{size, description.num_views, description.feature_width};
  TORCH_CHECK(size > 0, "[write_part] all parts are there");
  TORCH_CHECK(features.is_floating_point() && features.sizes() == at::IntArrayRef(shape),
              "[write_part] features must be floating point ", shape, ", but are ", features.scalar_type(), " ",
              features.sizes());
  check_samples(samples, first, size, description);
  const auto rows = stored_features(features, samples, first, description);
  auto sha256 = detail::CachePart::write(impl.folder, description, impl.next_part, rows, samples);
  impl.add_part(detail::CachePart(impl.folder, description, impl.next_part), std::move(sha256));
}

CacheReport EmbeddingCacheWriter::finish() {
  auto& impl = *impl_;
  CONTRASTIVE_INTERNAL_ASSERT(next_sample() == impl.description.num_samples);
  if (impl.is_complete) return impl.report;
  for (size_t i = 0; i < impl.files.size(); ++i) {
    auto& sha256 = impl.files[i].sha256;
    if (sha256.empty()) sha256 = sha256_hex_of_file(impl.folder / detail::part_name(static_cast<int64_t>(i)));
  }
  write_file_atomically(impl.folder / detail::kCacheFile,
                        detail::to_text(detail::CacheManifest{impl.description, impl.report.num_missing, impl.files}));
  fs::remove(impl.folder / detail::kUnfinishedFile);
  impl.is_complete = true;
  return impl.report;
}

}  // namespace contrastive::data
