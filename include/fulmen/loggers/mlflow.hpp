// MLFlowLogger: a run in the folder `mlruns`, as MLflow's own file store writes and reads it.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/loggers/background_writer.hpp>
#include <fulmen/loop/context.hpp>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <fulmen/checkpoint/atomic_file.hpp>
#include <fulmen/error.hpp>
#include <fulmen/loggers/hyperparameters.hpp>

#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string_view>
#include <system_error>
#endif

namespace fulmen {

/// Names are those of Lightning's MLFlowLogger.
struct MLFlowOptions {
  std::string experiment_name{};              ///< up to 64 printable characters; empty: Options::name
  std::string run_name{};                     ///< empty: the name of the run's folder, "version_0"
  std::filesystem::path save_dir = "mlruns";  ///< the file store; MLflow's own name for it
  std::vector<std::pair<std::string, std::string>> tags{};
  double flush_secs = 1;  ///< so long at most is a value kept from its file
};

/// Logs to MLflow without a server: `save_dir/<experiment>/<run>/` with `meta.yaml`, `metrics/`, `params/`
/// and `tags/`. The experiment is the one of that name, or a new one. `MLFLOW_ALLOW_FILE_STORE=true mlflow
/// ui` shows it (MLflow 3 asks for the variable), and `mlflow migrate-filestore` brings it into a database.
///
/// As in Lightning, characters that MLflow does not allow in names of metrics are left out, here also of
/// parts of a path that are empty or dots. A run is FINISHED after each stage, FAILED if that ended by an
/// exception, KILLED by Ctrl-C.
///
/// Metrics are written by a BackgroundWriter, whose errors log_metrics and finalize throw; the rest at once,
/// each file whole or not at all. @throws std::runtime_error naming the file.
class MLFlowLogger {
 public:
  /// @throws std::invalid_argument naming the option.
  explicit MLFlowLogger(MLFlowOptions options = {});

  void log_metrics(Context& ctx, const Metrics& metrics, std::int64_t step);
  /// All metrics are in their files afterwards, and the run's end and status in its meta.yaml.
  void finalize(Context& ctx);

  /// Written as parameters, nested States made flat: "optimizer/lr". Kept until the run begins, with the
  /// first log_metrics.
  /// @throws std::invalid_argument for one that has another value already: MLflow's parameters do not change.
  void log_hyperparams(const State& params);

  /// MLflow's ids; empty before the run has begun.
  const std::string& experiment_id() const { return experiment_id_; }
  const std::string& run_id() const { return run_id_; }

 private:
  enum class Status { running = 1, finished = 3, failed = 4, killed = 5 };

  void begin(Context& ctx);
  void write_params();
  void write_run(Status status, std::int64_t end_time) const;

  MLFlowOptions options_;
  BackgroundWriter writer_;
  std::map<std::string, std::size_t, std::less<>> files_;    // by metric
  std::vector<std::pair<std::string, std::string>> params_;  // that are not written yet
  std::string experiment_id_, run_id_;
  std::filesystem::path folder_;
  std::int64_t start_time_ = 0;
  std::exception_ptr handled_;  // what was being handled when the run began: that was not the run's
};

#if FULMEN_BODIES

namespace detail::mlflow {

/// Milliseconds since 1970.
FULMEN_INLINE std::int64_t now() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
}

/// Writes a small file, and its folders.
FULMEN_INLINE void write_file(const std::filesystem::path& path, std::string_view text) {
  checkpoint::make_folder(path.parent_path());
  checkpoint::AtomicFile file(path, "MLflow file");
  file.append(text.data(), text.size());
  file.commit();
}

FULMEN_INLINE std::string yaml_quoted(std::string_view text) {  // YAML, in single quotes
  std::string out = "'";
  for (const char c : text) (c == '\'' ? out += '\'' : out) += c;
  return out + "'";
}

FULMEN_INLINE std::string file_uri(const std::filesystem::path& path) {
  std::string uri = "file://";
  for (const char c : std::filesystem::absolute(path).lexically_normal().string()) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
                       std::string_view("/-._~").find(c) != std::string_view::npos;
    if (plain)
      uri += c;
    else
      uri += detail::format("%{:02X}", static_cast<unsigned>(static_cast<unsigned char>(c)));
  }
  return uri;
}

/// A name as MLflow takes it for metrics, parameters and tags: it is a path, too.
FULMEN_INLINE std::string clean_name(std::string_view name) {
  std::string out, part;
  const auto end_part = [&] {
    if (!part.empty() && part != "." && part != "..") (out += out.empty() ? "" : "/") += part;
    part.clear();
  };
  for (const char c : name) {
    const bool allowed = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
                         std::string_view("_. -").find(c) != std::string_view::npos;
    if (c == '/')
      end_part();
    else if (allowed)
      part += c;
  }
  end_part();
  if (out.empty()) fail<std::invalid_argument>("MLflow: '{}' has no letter or digit to make a name of", name);
  return out;
}

/// The id of the experiment in the store, or an empty one. Its names are compared as YAML writers may have
/// written them.
FULMEN_INLINE std::string find_experiment(const std::filesystem::path& store, const std::string& name) {
  const std::string plain = "name: " + name, single = "name: " + yaml_quoted(name),
                    twice = "name: \"" + name + '"';
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(store, error)) {
    std::ifstream meta(entry.path() / "meta.yaml");
    for (std::string line; std::getline(meta, line);) {
      if (line == plain || line == single || line == twice) return entry.path().filename().string();
    }
  }
  return {};
}

FULMEN_INLINE void write_experiment(const std::filesystem::path& store, const std::string& id,
                                    const std::string& name) {
  const std::int64_t time = now();
  write_file(
      store / id / "meta.yaml",
      detail::format("artifact_location: {}\ncreation_time: {}\nexperiment_id: '{}'\nlast_update_time: {}\n"
                     "lifecycle_stage: active\nname: {}\n",
                     file_uri(store / id), time, id, time, yaml_quoted(name)));
}

FULMEN_INLINE std::string user() {
  const ::passwd* entry = ::getpwuid(::getuid());
  return entry == nullptr ? std::to_string(::getuid()) : entry->pw_name;
}

}  // namespace detail::mlflow

FULMEN_INLINE MLFlowLogger::MLFlowLogger(MLFlowOptions options)
    : options_(std::move(options)),
      writer_("metric file", {.interval = std::chrono::duration<double>(options_.flush_secs)}) {
  // Longer ones are written in several lines, in which find_experiment() would not know them.
  const auto control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; };
  const std::string& name = options_.experiment_name;
  if (name.size() > 64 || std::any_of(name.begin(), name.end(), control)) {
    fail<std::invalid_argument>(
        "MLFlowLogger: experiment_name is '{}', expected at most 64 printable characters", name);
  }
  if (options_.save_dir.empty())
    fail<std::invalid_argument>("MLFlowLogger: save_dir is empty, expected a folder");
}

FULMEN_INLINE void MLFlowLogger::begin(Context& ctx) {
  namespace mlflow = detail::mlflow;
  const std::string name = options_.experiment_name.empty() ? ctx.options().name : options_.experiment_name;
  if (options_.run_name.empty()) options_.run_name = ctx.run_dir().filename().string();
  // MLflow makes this one when it makes a store.
  if (!std::filesystem::exists(options_.save_dir))
    mlflow::write_experiment(options_.save_dir, "0", "Default");

  std::string experiment = mlflow::find_experiment(options_.save_dir, name);
  if (experiment.empty()) {
    // From the name (FNV-1a), so that two runs that start at once do not make two experiments of one name.
    std::uint64_t hash = 0xCBF29CE484222325u;
    for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
    experiment = detail::format("{:018}", hash % 1'000'000'000'000'000'000u);
    mlflow::write_experiment(options_.save_dir, experiment, name);
  }
  std::random_device random;  // four times: an id has 128 bits
  std::string id;
  for (int i = 0; i < 4; ++i) id += detail::format("{:08x}", random());

  experiment_id_ = std::move(experiment);
  run_id_ = std::move(id);
  folder_ = options_.save_dir / experiment_id_ / run_id_;
  start_time_ = mlflow::now();
  handled_ = std::current_exception();
  std::filesystem::create_directories(folder_ / "artifacts");
  std::filesystem::create_directories(folder_ / "metrics");
  std::filesystem::create_directories(folder_ / "params");
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  mlflow::write_file(folder_ / "tags" / "mlflow.runName", options_.run_name);
  mlflow::write_file(folder_ / "tags" / "mlflow.user", mlflow::user());
  mlflow::write_file(folder_ / "tags" / "mlflow.source.name", program.string());
  mlflow::write_file(folder_ / "tags" / "mlflow.source.type", "LOCAL");
  for (const auto& [key, value] : options_.tags)
    mlflow::write_file(folder_ / "tags" / mlflow::clean_name(key), value);
  write_run(Status::running, 0);
  write_params();
}

FULMEN_INLINE void MLFlowLogger::write_run(Status status, std::int64_t end_time) const {
  namespace mlflow = detail::mlflow;
  const std::string end = end_time == 0 ? "null" : std::to_string(end_time);
  mlflow::write_file(
      folder_ / "meta.yaml",
      detail::format(
          "artifact_uri: {}\nend_time: {}\nentry_point_name: ''\nexperiment_id: '{}'\nlifecycle_stage: "
          "active\n"
          "run_id: {}\nrun_name: {}\nsource_name: ''\nsource_type: 4\nsource_version: ''\nstart_time: {}\n"
          "status: {}\ntags: []\nuser_id: {}\n",
          mlflow::file_uri(folder_ / "artifacts"), end, experiment_id_, mlflow::yaml_quoted(run_id_),
          mlflow::yaml_quoted(options_.run_name), start_time_, static_cast<int>(status),
          mlflow::yaml_quoted(mlflow::user())));
}

FULMEN_INLINE void MLFlowLogger::write_params() {
  for (const auto& [name, value] : std::exchange(params_, {})) {
    const std::filesystem::path path = folder_ / "params" / name;
    if (std::ifstream file(path, std::ios::binary); file) {
      std::ostringstream before;
      before << file.rdbuf();
      if (before.str() == value) continue;
      fail<std::invalid_argument>("MLflow parameter '{}' is '{}' already, and cannot become '{}'", name,
                                  before.str(), value);
    }
    detail::mlflow::write_file(path, value);
  }
}

FULMEN_INLINE void MLFlowLogger::log_hyperparams(const State& params) {
  for (const detail::Hyperparameter& param : detail::flat_hyperparameters(params)) {
    params_.emplace_back(detail::mlflow::clean_name(param.name), param.text);
  }
  if (!run_id_.empty()) write_params();
}

FULMEN_INLINE void MLFlowLogger::log_metrics(Context& ctx, const Metrics& metrics, std::int64_t step) {
  if (run_id_.empty()) begin(ctx);
  const std::int64_t time = detail::mlflow::now();
  const auto log = [&](std::string_view name, double value) {
    const std::string line = detail::format("{} {} {}\n", time, detail::float_text(value), step);
    const auto known = files_.find(name);
    if (known != files_.end()) return writer_.append(known->second, line);
    const std::filesystem::path path = folder_ / "metrics" / detail::mlflow::clean_name(name);
    checkpoint::make_folder(path.parent_path());
    // With its first line, since MLflow cannot read a run that has an empty file.
    files_.emplace(name, writer_.add(path, line));
  };
  for (const Metric& metric : metrics) log(metric.name, metric.value);
  if (!metrics.find("epoch")) log("epoch", static_cast<double>(ctx.epoch()));
}

FULMEN_INLINE void MLFlowLogger::finalize(Context& ctx) {
  if (run_id_.empty()) {
    if (params_.empty() || !ctx.writes_files()) return;
    begin(ctx);
  }
  writer_.flush();
  // The Trainer finalizes its loggers while it handles what ended the stage.
  const bool failed = std::current_exception() != handled_;
  write_run(ctx.interrupted() ? Status::killed
            : failed          ? Status::failed
                              : Status::finished,
            detail::mlflow::now());
}

#endif

}  // namespace fulmen
