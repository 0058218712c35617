#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include <fmt/format.h>

#include "contrastive/adapt/report.h"
#include "contrastive/core/error.h"

namespace contrastive::adapt {
namespace {

constexpr double kWidth = 860;
constexpr double kHeight = 480;
constexpr double kLeft = 60;
constexpr double kRight = 600;  ///< where the legend begins
constexpr double kTop = 40;
constexpr double kBottom = 430;

/// Okabe and Ito's colours, which the colour-blind can tell apart.
constexpr const char* kColours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000"};

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

/// From shots and percent to places in the drawing.
class Axes {
 public:
  Axes(std::set<int64_t> shots, double lowest, double highest) : shots_(std::move(shots)) {
    const auto range = std::max(highest - lowest, 1.0);
    for (const double step : {0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0}) {
      step_ = step;
      if (range / step <= 8) break;
    }
    low_ = std::floor((lowest - 0.02 * range) / step_) * step_;
    high_ = std::ceil((highest + 0.02 * range) / step_) * step_;
  }

  double x(int64_t shots) const {
    const auto first = std::log(static_cast<double>(*shots_.begin()));
    const auto last = std::log(static_cast<double>(*shots_.rbegin()));
    if (last <= first) return (kLeft + kRight) / 2;
    return kLeft + 20 + (std::log(static_cast<double>(shots)) - first) / (last - first) * (kRight - kLeft - 40);
  }
  double y(double percent) const { return kBottom - (percent - low_) / (high_ - low_) * (kBottom - kTop); }

  std::string draw() const {
    std::string text;
    const auto lines = std::lround((high_ - low_) / step_);
    for (int64_t i = 0; i <= lines; ++i) {
      const auto percent = low_ + static_cast<double>(i) * step_;
      text += fmt::format(
          "<line x1=\"{0}\" y1=\"{2:.1f}\" x2=\"{1}\" y2=\"{2:.1f}\" stroke=\"#e0e0e0\"/>\n"
          "<text x=\"{3}\" y=\"{4:.1f}\" text-anchor=\"end\">{5:.4g}</text>\n",
          kLeft, kRight, y(percent), kLeft - 6, y(percent) + 4, percent);
    }
    for (const auto each : shots_) {
      text +=
          fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n", x(each), kBottom + 18, each);
    }
    return text + fmt::format(
                      "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">labelled images a class</text>\n"
                      "<text x=\"16\" y=\"{}\" text-anchor=\"middle\" transform=\"rotate(-90 16 {})\">accuracy "
                      "in percent</text>\n",
                      (kLeft + kRight) / 2, kBottom + 40, (kTop + kBottom) / 2, (kTop + kBottom) / 2);
  }

 private:
  std::set<int64_t> shots_;
  double low_ = 0;
  double high_ = 0;
  double step_ = 1;
};

std::vector<ReportCell> shot_cells(const ReportRow& row) {
  std::vector<ReportCell> cells;
  for (const auto& cell : row.cells) {
    if (cell.support == "few-shot" && cell.shots > 0) cells.push_back(cell);
  }
  return cells;
}

/// How a method is drawn: its colour says which adapter it is, line and marks which protocol.
struct Style {
  const char* colour = "#888888";
  const char* dashes = "";
  enum class Mark { none, disc, ring, square } mark = Mark::none;
};

/// "tip-x/fixed [tau=0.1]" in the colour of all protocols of "tip-x [tau=0.1]"; `colours` holds those given so far.
Style style_of(const std::string& method, std::map<std::string, const char*>& colours) {
  const auto slash = std::min(method.find('/'), method.size());
  const auto protocol = method.substr(slash, method.find_first_of(" [", slash) - slash);
  const auto* next = kColours[colours.size() % std::size(kColours)];
  const auto adapter = method.substr(0, slash) + method.substr(slash + protocol.size());
  Style style{colours.emplace(adapter, next).first->second, "", Style::Mark::disc};
  if (protocol == "/fixed") style = {style.colour, "2 3", Style::Mark::ring};
  if (protocol == "/val") style.mark = Style::Mark::square;
  if (protocol == "/test-oracle") style.dashes = "6 4";
  return style;
}

std::string draw_mark(double x, double y, const Style& style) {
  switch (style.mark) {
    case Style::Mark::none:
      break;
    case Style::Mark::disc:
      return fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n", x, y, style.colour);
    case Style::Mark::ring:
      return fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"#ffffff\" stroke=\"{}\"/>\n", x, y,
                         style.colour);
    case Style::Mark::square:
      return fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"6\" height=\"6\" fill=\"{}\"/>\n", x - 3, y - 3,
                         style.colour);
  }
  return "";
}

std::string stroke(const Style& style) {
  const auto dashes = std::string(style.dashes);
  return fmt::format("stroke=\"{}\" stroke-width=\"2\"{}", style.colour,
                     dashes.empty() ? dashes : fmt::format(" stroke-dasharray=\"{}\"", dashes));
}

std::string draw_row(const std::vector<ReportCell>& cells, const Axes& axes, const Style& style) {
  std::string points;
  std::string bars;
  std::string marks;
  for (const auto& cell : cells) {
    const auto x = axes.x(cell.shots);
    const auto y = axes.y(100 * cell.mean);
    points += fmt::format("{}{:.1f},{:.1f}", points.empty() ? "" : " ", x, y);
    marks += draw_mark(x, y, style);
    if (cell.num_seeds > 1) {
      bars += fmt::format("<line x1=\"{0:.1f}\" y1=\"{1:.1f}\" x2=\"{0:.1f}\" y2=\"{2:.1f}\" stroke=\"{3}\"/>\n", x,
                          axes.y(100 * (cell.mean - cell.deviation)), axes.y(100 * (cell.mean + cell.deviation)),
                          style.colour);
    }
  }
  return fmt::format("<polyline points=\"{}\" fill=\"none\" {}/>\n{}{}", points, stroke(style), bars, marks);
}

std::string draw_name(const std::string& name, double y, const Style& style) {
  return fmt::format(
      "<line x1=\"{}\" y1=\"{:.1f}\" x2=\"{}\" y2=\"{:.1f}\" {}/>\n{}<text x=\"{}\" y=\"{:.1f}\">{}</text>\n",
      kRight + 16, y, kRight + 40, y, stroke(style), draw_mark(kRight + 28, y, style), kRight + 46, y + 4,
      escaped(name));
}

}  // namespace

std::string report_svg(const ReportTable& table) {
  std::set<int64_t> shots;
  double lowest = 100 * table.zero_shot_accuracy;
  double highest = lowest;
  for (const auto& row : table.rows) {
    for (const auto& cell : shot_cells(row)) {
      shots.insert(cell.shots);
      lowest = std::min(lowest, 100 * (cell.mean - cell.deviation));
      highest = std::max(highest, 100 * (cell.mean + cell.deviation));
    }
  }
  if (shots.empty()) throw DataError(fmt::format("[report] {} has no figures over shots to draw", table.dataset));
  const Axes axes(shots, lowest, highest);
  auto text = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{0}\" height=\"{1}\" fill=\"#ffffff\"/>\n"
      "<text x=\"{2}\" y=\"22\" font-size=\"14\">{3}, {4} images, prompts: {5}</text>\n",
      kWidth, kHeight, kLeft, escaped(table.dataset), table.num_samples, escaped(table.prompts));
  text += axes.draw();
  const auto zero_shot = axes.y(100 * table.zero_shot_accuracy);
  text += fmt::format(
      "<line x1=\"{0}\" y1=\"{2:.1f}\" x2=\"{1}\" y2=\"{2:.1f}\" stroke=\"#888888\" stroke-dasharray=\"2 3\"/>\n",
      kLeft, kRight, zero_shot);
  double legend = kTop + 10;
  text += draw_name("zero-shot", legend, {"#888888", "2 3", Style::Mark::none});
  std::map<std::string, const char*> colours;
  for (const auto& row : table.rows) {
    const auto cells = shot_cells(row);
    if (cells.empty()) continue;
    const auto style = style_of(row.method, colours);
    legend += 18;
    text += draw_row(cells, axes, style) + draw_name(row.method, legend, style);
  }
  return text + "</svg>\n";
}

}  // namespace contrastive::adapt
