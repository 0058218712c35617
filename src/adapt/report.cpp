#include "contrastive/adapt/report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/adapt/adapter.h"
#include "contrastive/core/error.h"

namespace contrastive::adapt {
namespace {

/// Supports in the order of columns.
constexpr const char* kSupports[] = {"none", "retrieved", "retrieved by another model", "folder", "few-shot"};
constexpr const char* kProtocols[] = {"fixed", "support-cv", "val", "test-oracle"};

int64_t place_of(const std::string& name, const std::vector<std::string>& order) {
  return std::find(order.begin(), order.end(), name) - order.begin();
}

bool is_oracle(const std::string& method) {
  return method.find("/test-oracle") != std::string::npos;
}

/// What only figures with equal values can be compared by.
using TableKey = std::tuple<std::string, std::string, std::string, std::string, std::string, double>;

TableKey table_key(const AdaptationRecord& record) {
  return {record.dataset,        record.model_sha256,  record.prompts,
          record.prompt_pooling, record.prompt_sha256, record.scale};
}

/// A method with its settings, in the order of rows.
using RowKey = std::tuple<int64_t, std::string, int64_t, bool, std::map<std::string, std::string>>;

RowKey row_key(const AdaptationRecord& record) {
  return {place_of(record.adapter, adapter_names()), record.adapter,
          place_of(record.protocol, {std::begin(kProtocols), std::end(kProtocols)}), record.transductive,
          record.settings};
}

/// A kind and size of support set: its place in the order of columns, shots, images.
using CellKey = std::tuple<int64_t, std::string, int64_t, int64_t>;

CellKey cell_key(const std::string& support, int64_t shots, int64_t images) {
  return {place_of(support, {std::begin(kSupports), std::end(kSupports)}), support, shots, images};
}

CellKey cell_key(const ReportCell& cell) {
  return cell_key(cell.support, cell.shots, cell.images);
}

CellKey cell_key(const AdaptationRecord& record) {
  return cell_key(record.support, record.shots, record.support == "few-shot" ? 0 : record.support_rows);
}

/// Of a run that was repeated the last result; runs are told apart by the draw, and sets without one by their content.
using Runs = std::map<std::pair<int64_t, std::string>, double>;

struct Row {
  std::string method;
  std::map<CellKey, Runs> cells;
};

ReportCell to_cell(const CellKey& key, const Runs& runs) {
  ReportCell cell;
  cell.support = std::get<1>(key);
  cell.shots = std::get<2>(key);
  cell.images = std::get<3>(key);
  cell.num_seeds = static_cast<int64_t>(runs.size());
  for (const auto& [run, accuracy] : runs) cell.mean += accuracy / static_cast<double>(runs.size());
  double squares = 0;
  for (const auto& [run, accuracy] : runs) squares += (accuracy - cell.mean) * (accuracy - cell.mean);
  if (runs.size() > 1) cell.deviation = std::sqrt(squares / static_cast<double>(runs.size() - 1));
  return cell;
}

/// The settings in which rows of the same method differ, as " [tau=0.5]".
std::vector<std::string> row_names(const std::map<RowKey, Row>& rows) {
  std::vector<std::string> names;
  for (const auto& [key, row] : rows) {
    std::vector<std::string> differing;
    for (const auto& [name, value] : std::get<4>(key)) {
      const bool differs = std::any_of(rows.begin(), rows.end(), [&, &setting = name, &own = value](const auto& other) {
        if (other.second.method != row.method) return false;
        const auto& settings = std::get<4>(other.first);
        const auto found = settings.find(setting);
        return found == settings.end() || found->second != own;
      });
      if (differs) differing.push_back(name + "=" + value);
    }
    names.push_back(differing.empty() ? row.method : fmt::format("{} [{}]", row.method, fmt::join(differing, " ")));
  }
  return names;
}

/// Whether both can be of the same images: rounding (another batch size or machine) may turn a few predictions.
bool agree(const AdaptationRecord& a, const AdaptationRecord& b) {
  const auto images = static_cast<double>(a.num_samples);
  const auto turned = std::abs(a.zero_shot_accuracy - b.zero_shot_accuracy) * images;
  return a.num_samples == b.num_samples && turned < std::max(2.0, images / 1000) + 0.5;
}

ReportTable to_table(const std::vector<const AdaptationRecord*>& records) {
  const auto& first = *records.front();
  ReportTable table;
  table.dataset = first.dataset;
  table.model = first.model;
  table.prompts = first.prompts;
  table.zero_shot_accuracy = first.zero_shot_accuracy;
  table.num_samples = first.num_samples;
  std::map<RowKey, Row> rows;
  for (const auto* record : records) {
    if (!agree(*record, first)) {
      throw DataError(
          fmt::format("[report] results of {} with {} don't belong together: zero-shot accuracy {:.4f} on {} images, "
                      "and {:.4f} on {}",
                      first.dataset, first.model, first.zero_shot_accuracy, first.num_samples,
                      record->zero_shot_accuracy, record->num_samples));
    }
    auto& row = rows[row_key(*record)];
    row.method = record->method();
    const auto draw = record->support == "few-shot" ? std::string() : record->support_sha256;
    row.cells[cell_key(*record)][{record->seed, draw}] = record->top1_accuracy;
  }
  const auto names = row_names(rows);
  size_t number = 0;
  for (const auto& [key, row] : rows) {
    ReportRow shown{names[number++], {}};
    for (const auto& [cell, runs] : row.cells) shown.cells.push_back(to_cell(cell, runs));
    table.rows.push_back(std::move(shown));
  }
  return table;
}

/// The columns of a table: every support set that some method was tested with.
std::set<CellKey> columns_of(const ReportTable& table) {
  std::set<CellKey> columns;
  for (const auto& row : table.rows) {
    for (const auto& cell : row.cells) columns.insert(cell_key(cell));
  }
  return columns;
}

const ReportCell* find_cell(const ReportRow& row, const CellKey& column) {
  for (const auto& cell : row.cells) {
    if (cell_key(cell) == column) return &cell;
  }
  return nullptr;
}

std::string column_name(const CellKey& column) {
  const auto& [place, support, shots, images] = column;
  if (support == "few-shot") return fmt::format("{} {}", shots, shots == 1 ? "shot" : "shots");
  return support == "none" ? "no images" : fmt::format("{}, {} images", support, images);
}

std::string shown_figure(const ReportCell& cell) {
  if (cell.num_seeds == 1) return fmt::format("{:.1f}", 100 * cell.mean);
  return fmt::format("{:.1f} ± {:.1f}", 100 * cell.mean, 100 * cell.deviation);
}

/// The best mean of a column that no test label has chosen; -1 if there is none.
double best_of(const ReportTable& table, const CellKey& column) {
  double best = -1;
  for (const auto& row : table.rows) {
    const auto* cell = find_cell(row, column);
    if (cell != nullptr && !is_oracle(row.method)) best = std::max(best, cell->mean);
  }
  return best;
}

std::string markdown_of(const ReportTable& table) {
  const auto columns = columns_of(table);
  auto text = fmt::format("{}, {} images, {}, prompts: {}. Accuracy in percent; zero-shot {:.2f}.\n\n| method |",
                          table.dataset, table.num_samples, table.model, table.prompts, 100 * table.zero_shot_accuracy);
  for (const auto& column : columns) text += fmt::format(" {} |", column_name(column));
  text += "\n|---|";
  for (size_t i = 0; i < columns.size(); ++i) text += "---|";
  text += "\n";
  std::set<int64_t> seeds;
  bool has_oracle = false;
  for (const auto& row : table.rows) {
    text += fmt::format("| {}{} |", row.method, is_oracle(row.method) ? " (upper bound)" : "");
    has_oracle = has_oracle || is_oracle(row.method);
    for (const auto& column : columns) {
      const auto* cell = find_cell(row, column);
      if (cell == nullptr) {
        text += " |";
        continue;
      }
      if (cell->num_seeds > 1) seeds.insert(cell->num_seeds);
      const bool is_best = !is_oracle(row.method) && cell->mean == best_of(table, column) && table.rows.size() > 1;
      text += is_best ? fmt::format(" **{}** |", shown_figure(*cell)) : fmt::format(" {} |", shown_figure(*cell));
    }
    text += "\n";
  }
  if (!seeds.empty()) text += fmt::format("\nMean ± standard deviation of {} draws.", fmt::join(seeds, " or "));
  if (has_oracle) {
    text +=
        fmt::format("{}test-oracle looks at the test labels: an upper bound, no result.", seeds.empty() ? "\n" : " ");
  }
  return text + (seeds.empty() && !has_oracle ? "" : "\n");
}

std::string quoted(const std::string& field) {
  if (field.find_first_of(",\"\n") == std::string::npos) return field;
  std::string text = "\"";
  for (const char c : field) text += c == '"' ? "\"\"" : std::string(1, c);
  return text + "\"";
}

}  // namespace

std::vector<ReportTable> make_report(const std::vector<AdaptationRecord>& records) {
  if (records.empty()) throw DataError("[report] there is no result");
  std::map<TableKey, std::vector<const AdaptationRecord*>> groups;
  for (const auto& record : records) groups[table_key(record)].push_back(&record);
  std::vector<ReportTable> tables;
  for (const auto& [key, group] : groups) tables.push_back(to_table(group));
  return tables;
}

std::string report_markdown(const std::vector<ReportTable>& tables) {
  std::string text;
  for (const auto& table : tables) {
    if (!text.empty()) text += '\n';
    text += markdown_of(table);
  }
  return text;
}

std::string report_csv(const std::vector<ReportTable>& tables) {
  std::string text = "dataset,model,prompts,method,support,shots,images,seeds,mean,deviation\n";
  for (const auto& table : tables) {
    for (const auto& row : table.rows) {
      for (const auto& cell : row.cells) {
        text += fmt::format("{},{},{},{},{},{},{},{},{},{}\n", quoted(table.dataset), quoted(table.model),
                            quoted(table.prompts), quoted(row.method), cell.support, cell.shots, cell.images,
                            cell.num_seeds, cell.mean, cell.deviation);
      }
    }
  }
  return text;
}

}  // namespace contrastive::adapt
