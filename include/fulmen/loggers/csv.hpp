// CSVLogger: metrics.csv in the run's folder, a column a name, a row a call.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/loop/context.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <fulmen/checkpoint/atomic_file.hpp>
#include <fulmen/error.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <ios>
#include <iterator>
#include <system_error>
#endif

namespace fulmen {

/// Lightning's CSVLogger: columns epoch and step, then one for each name in the order of first logging; a cell is empty
/// where a row does not have the value. Rows reach the file every `flush_logs_every_n_steps` rows and at a stage's end,
/// in order or by an exception; numbers are written so that they read back to the same bits.
class CSVLogger {
 public:
  explicit CSVLogger(std::size_t flush_logs_every_n_steps = 100) : flush_every_(flush_logs_every_n_steps) {}

  void log_metrics(Context& ctx, const Metrics& metrics, std::int64_t step);

  /// @throws std::runtime_error naming the file if it cannot be written.
  void finalize(Context&) { write(); }

 private:
  struct Row {
    std::int64_t epoch, step;
    std::vector<std::pair<std::size_t, double>> values;  // column, value
  };

  std::size_t column_of(std::string_view name);
  void write();
  void append(const std::string& text);

  /// A new name is a new column: the file is written anew, aside and renamed, with empty cells for the rows before.
  void rewrite(const std::string& text);

  /// RFC 4180: a field with a comma, a quote or a line break stands in quotes, and quotes in it are doubled.
  static std::string quoted(const std::string& name);

  std::size_t flush_every_;
  std::filesystem::path path_;
  std::vector<std::string> columns_;
  std::vector<Row> rows_;
  std::size_t header_columns_ = 0;
};

#if FULMEN_BODIES

FULMEN_INLINE void CSVLogger::log_metrics(Context& ctx, const Metrics& metrics, std::int64_t step) {
  if (path_.empty()) path_ = ctx.run_dir() / "metrics.csv";
  Row row{ctx.epoch(), step, {}};
  for (const Metric& metric : metrics) row.values.emplace_back(column_of(metric.name), metric.value);
  rows_.push_back(std::move(row));
  if (rows_.size() >= flush_every_) write();
}

FULMEN_INLINE std::size_t CSVLogger::column_of(std::string_view name) {
  const auto found = std::find(columns_.begin(), columns_.end(), name);
  const auto index = static_cast<std::size_t>(found - columns_.begin());
  if (found == columns_.end()) columns_.emplace_back(name);
  return index;
}

FULMEN_INLINE void CSVLogger::write() {
  if (rows_.empty()) return;
  std::string text;
  std::vector<double> cells;
  std::vector<bool> filled;
  for (const Row& row : rows_) {
    cells.assign(columns_.size(), 0);
    filled.assign(columns_.size(), false);
    for (const auto& [column, value] : row.values) cells[column] = value, filled[column] = true;
    fmt::format_to(std::back_inserter(text), "{},{}", row.epoch, row.step);
    for (std::size_t i = 0; i < cells.size(); ++i) {
      text += ',';
      if (filled[i]) fmt::format_to(std::back_inserter(text), "{}", cells[i]);
    }
    text += '\n';
  }
  if (columns_.size() == header_columns_) {
    append(text);
  } else {
    rewrite(text);
  }
  rows_.clear();
}

FULMEN_INLINE void CSVLogger::append(const std::string& text) {
  std::FILE* file = std::fopen(path_.c_str(), "ab");
  const bool written = file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
  const bool closed = file != nullptr && std::fclose(file) == 0;
  if (!written || !closed) fail("cannot write '{}': {}", path_.string(), std::generic_category().message(errno));
}

FULMEN_INLINE void CSVLogger::rewrite(const std::string& text) {
  std::string all = "epoch,step";
  for (const std::string& name : columns_) (all += ',') += quoted(name);
  all += '\n';
  if (header_columns_ > 0) {
    std::ifstream before(path_, std::ios::binary);
    std::string line;
    std::getline(before, line);  // the old header
    while (std::getline(before, line)) (all += line).append(columns_.size() - header_columns_, ',') += '\n';
  }
  all += text;
  checkpoint::AtomicFile file(path_, "metrics file");
  file.append(all.data(), all.size());
  file.commit();
  header_columns_ = columns_.size();
}

FULMEN_INLINE std::string CSVLogger::quoted(const std::string& name) {
  if (name.find_first_of(",\"\n\r") == std::string::npos) return name;
  std::string out = "\"";
  for (const char c : name) (c == '"' ? out += '"' : out) += c;
  return out += '"';
}

#endif

}  // namespace fulmen
