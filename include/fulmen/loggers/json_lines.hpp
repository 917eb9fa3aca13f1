// JSONLinesLogger: metrics.jsonl in the run's folder, an object of JSON a line, a line a call.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/loggers/background_writer.hpp>
#include <fulmen/loop/context.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#if FULMEN_BODIES
#include <fulmen/error.hpp>
#include <fulmen/loggers/hyperparameters.hpp>

#include <chrono>
#include <cmath>
#endif

namespace fulmen {

struct JSONLinesOptions {
  double flush_secs = 1;                   ///< so long at most is a line kept from the file
  std::string filename = "metrics.jsonl";  ///< in the run's folder
};

/// Writes lines such as
///
///   {"epoch":0,"step":49,"time":1763734571.724,"train/loss":0.25}
///
/// `time` is the seconds since 1970. Numbers read back to the same bits. JSON has no NaN and no infinities:
/// they are null, as JavaScript's JSON.stringify has them, so that every reader takes every line. A value
/// that is called `epoch` or `time` stands in place of the logger's own.
///
/// Lines are written by a BackgroundWriter, whose errors log_metrics and finalize throw.
class JSONLinesLogger {
 public:
  explicit JSONLinesLogger(JSONLinesOptions options = {});

  void log_metrics(Context& ctx, const Metrics& metrics, std::int64_t step);
  /// All lines are in the file afterwards.
  void finalize(Context&) { writer_.flush(); }

 private:
  JSONLinesOptions options_;
  BackgroundWriter writer_;
  std::optional<std::size_t> file_;
};

namespace detail {

/// A JSON string, with its quotes. Bytes that are no control characters, quotes or backslashes stay as they
/// are: UTF-8.
std::string json_string(std::string_view text);
std::string json_number(double value);

}  // namespace detail

#if FULMEN_BODIES

FULMEN_INLINE std::string detail::json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\')
      (out += '\\') += c;
    else if (static_cast<unsigned char>(c) < 0x20)
      out += detail::format("\\u{:04x}", static_cast<unsigned>(c));
    else
      out += c;
  }
  return out += '"';
}

FULMEN_INLINE std::string detail::json_number(double value) {
  return std::isfinite(value) ? float_text(value) : "null";
}

FULMEN_INLINE JSONLinesLogger::JSONLinesLogger(JSONLinesOptions options)
    : options_(std::move(options)),
      writer_("log file", {.interval = std::chrono::duration<double>(options_.flush_secs)}) {}

FULMEN_INLINE void JSONLinesLogger::log_metrics(Context& ctx, const Metrics& metrics, std::int64_t step) {
  if (!file_) file_ = writer_.add(ctx.run_dir() / options_.filename);
  std::string line = "{";
  if (!metrics.find("epoch")) line += detail::format("\"epoch\":{},", ctx.epoch());
  line += detail::format("\"step\":{}", step);
  if (!metrics.find("time")) {
    const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
    line += detail::format(",\"time\":{:.3f}", now.count());
  }
  for (const Metric& metric : metrics) {
    line += ',' + detail::json_string(metric.name) + ':' + detail::json_number(metric.value);
  }
  writer_.append(*file_, line += "}\n");
}

#endif

}  // namespace fulmen
