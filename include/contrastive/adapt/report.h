#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "contrastive/adapt/adaptation_record.h"
#include "contrastive/core/export.h"

namespace contrastive::adapt {

/// What a method reached with one kind and size of support set, over the seeds.
struct ReportCell {
  std::string support;  ///< AdaptationRecord::support
  int64_t shots = 0;    ///< of few-shot
  int64_t images = 0;   ///< of retrieved sets and folders
  int64_t num_seeds = 0;
  double mean = 0;       ///< of top1_accuracy
  double deviation = 0;  ///< of the seeds (n - 1 in the denominator); 0 for one
};

/// A method's results. Methods with other settings or another protocol are rows of their own.
struct ReportRow {
  std::string method;  ///< AdaptationRecord::method(), with the settings that tell it from others of the same name
  std::vector<ReportCell> cells;
};

/// The results of one model with one kind of prompts on one data set: only such figures can be compared.
struct ReportTable {
  std::string dataset;
  std::string model;
  std::string prompts;
  double zero_shot_accuracy = 0;
  int64_t num_samples = 0;
  std::vector<ReportRow> rows;  ///< in the order of adapter_names(), then of protocols
};

/// Groups records into tables. Of several records of the same run (method, support set, seed) the last one counts.
/// Throws: DataError if records of one table disagree about the zero-shot accuracy (beyond a thousandth of the images,
/// which rounding may turn) or the number of test images, or if there is none.
CONTRASTIVE_API std::vector<ReportTable> make_report(const std::vector<AdaptationRecord>& records);

/// A Markdown table a data set: a row a method, a column a kind and size of support set (retrieved, folder, 1, 2, ...
/// shots), "81.2 ± 0.3" in percent over the seeds, whose number stands below; the best honest figure of a column is
/// bold (test-oracle is none, and is marked as an upper bound).
CONTRASTIVE_API std::string report_markdown(const std::vector<ReportTable>& tables);

/// A line a cell: dataset,model,prompts,method,support,shots,images,seeds,mean,deviation.
CONTRASTIVE_API std::string report_csv(const std::vector<ReportTable>& tables);

/// An SVG drawing: accuracy against shots (logarithmic axis), a line with bars of the deviation a method, and the
/// zero-shot accuracy as a level line. An adapter has one colour (the colour-blind can tell them apart), a protocol one
/// kind of line and marks; a legend names them. Throws: DataError if the table has no figures over shots.
CONTRASTIVE_API std::string report_svg(const ReportTable& table);

}  // namespace contrastive::adapt
