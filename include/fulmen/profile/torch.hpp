// TorchProfiler: LibTorch's own profiler over some batches of a stage; a trace that Perfetto and TensorBoard
// open, and a table of operators.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/loop/context.hpp>
#include <fulmen/profile/profiler.hpp>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#if FULMEN_BODIES
#include <fulmen/error.hpp>
#include <fulmen/profile/report.hpp>
#include <fulmen/terminal/table.hpp>

#include <ATen/Context.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>
#endif

namespace fulmen {

/// Which steps are recorded: after the first `skip_first`, `wait` steps of nothing, `warmup` steps with the
/// profiler on and what it says thrown away, `active` steps recorded, and so again, `repeat` times (0: to the
/// end). A step is a batch, of training or of evaluation; those of the sanity check do not count.
/// torch.profiler.schedule with Lightning's defaults.
struct ProfilerSchedule {
  std::int64_t wait = 1, warmup = 1, active = 3, repeat = 1, skip_first = 0;
};

/// What the table of operators is sorted by: the largest first.
enum class OperatorSort : std::uint8_t {
  self_cpu_time_total,
  cpu_time_total,
  self_device_time_total,
  device_time_total,
  count
};

namespace detail {
class TorchSession;
}

/// LibTorch's profiler (Kineto) on the steps that a schedule names, on the CPU and, if there is one, the GPU:
///
///   Trainer trainer{..., DefaultRuntime{}.with_profiler(TorchProfiler{})};
///
/// Each recording is a Chrome trace, `<dirpath>/<stage>-<filename>.<n>.pt.trace.json`, in which each action
/// is a range around its operators: open it with https://ui.perfetto.dev or TensorBoard. After the stage
/// comes a table of the operators that were recorded. A recording that runs when the stage ends, also by an
/// exception, is kept. What other threads do is not recorded. Lightning's PyTorchProfiler, but for this: it
/// counts batches of each kind apart.
struct TorchProfiler {
  std::filesystem::path dirpath{};  ///< where files go; empty: into the run's folder
  std::string filename{};           ///< `<dirpath>/<stage>-<filename>.txt` gets the table; empty: stdout does
  bool export_to_chrome = true;     ///< write traces
  std::int64_t row_limit = 20;      ///< rows of the table; -1: all
  OperatorSort sort_by_key = OperatorSort::self_cpu_time_total;
  ProfilerSchedule schedule{};
  bool record_shapes = false;   ///< inputs' shapes, in the trace
  bool profile_memory = false;  ///< what is allocated and freed, in the trace
  bool with_flops =
      false;  ///< a column of floating point operations, of those operators whose number is known

  /// @throws std::invalid_argument naming an option that is out of range; std::runtime_error naming the
  /// folder or file that cannot be written
  void setup(Context& ctx);
  void start(const Action& action);
  void stop(const Action& action);
  /// @throws std::runtime_error naming the trace that cannot be written
  void step(Context& ctx);
  void teardown(Context& ctx);

  // Public only because aggregates have no private members.
  std::shared_ptr<detail::TorchSession> session_{};
  std::int64_t traces_ = 0;
};

#if FULMEN_BODIES

namespace detail {

/// What the events of one name add up to. Times in nanoseconds.
struct OperatorTime {
  std::string name;
  std::uint64_t self_cpu = 0, cpu = 0, self_device = 0, device = 0, flops = 0;
  std::int64_t count = 0;
};

/// The profiler in one stage.
class TorchSession {
 public:
  TorchSession(TorchProfiler& profiler, Context& ctx);
  ~TorchSession() { abandon(); }
  TorchSession(const TorchSession&) = delete;
  TorchSession& operator=(const TorchSession&) = delete;

  void start(const Action& action);
  void stop(const Action& action);
  void step();
  void finish();

 private:
  struct Range {
    const Action* action;
    std::unique_ptr<at::RecordFunction> record;  // while it is recorded
  };
  enum class Todo : std::uint8_t { nothing, warmup, record };

  Todo todo(std::int64_t step) const;
  void apply(Todo todo);
  void enable();
  std::unique_ptr<torch::autograd::profiler::ProfilerResult> disable();
  void abandon() noexcept;
  void keep();
  void save(torch::autograd::profiler::ProfilerResult& result);
  void add(const std::vector<torch::autograd::profiler::KinetoEvent>& events);
  void open(Range& range);
  terminal::Table table() const;

  TorchProfiler& options_;
  Context& ctx_;
  torch::profiler::impl::ProfilerConfig config_;
  std::set<torch::profiler::impl::ActivityType> activities_;
  std::filesystem::path folder_, report_;
  std::vector<Range> ranges_;
  std::vector<OperatorTime> operators_;
  std::int64_t step_ = 0, recorded_ = 0;
  bool begun_ = false, prepared_ = false, recording_ = false;
};

FULMEN_INLINE TorchSession::TorchSession(TorchProfiler& profiler, Context& ctx)
    : options_(profiler),
      ctx_(ctx),
      config_(torch::profiler::impl::ProfilerState::KINETO, profiler.record_shapes, profiler.profile_memory,
              /*with_stack=*/false, profiler.with_flops),
      activities_{torch::profiler::impl::ActivityType::CPU} {
  const ProfilerSchedule& s = profiler.schedule;
  const auto at_least = [](const char* option, std::int64_t value, std::int64_t least) {
    if (value < least)
      fail<std::invalid_argument>("TorchProfiler::{} is {}, expected at least {}", option, value, least);
  };
  at_least("schedule.wait", s.wait, 0);
  at_least("schedule.warmup", s.warmup, 0);
  at_least("schedule.active", s.active, 1);
  at_least("schedule.repeat", s.repeat, 0);
  at_least("schedule.skip_first", s.skip_first, 0);
  at_least("row_limit", profiler.row_limit, -1);
  if (torch::profiler::impl::profilerEnabled()) {
    fail<std::logic_error>("TorchProfiler: a profiler of LibTorch runs on this thread already");
  }
  if (at::hasCUDA()) {
    activities_.insert(torch::profiler::impl::ActivityType::CUDA);
  } else {
    ::setenv("KINETO_LOG_LEVEL", "99", /*overwrite=*/0);  // else Kineto says at length that there is no GPU
  }
  report_ = report_path(ctx, profiler.dirpath, profiler.filename);
  if (profiler.export_to_chrome) folder_ = profile_folder(ctx, profiler.dirpath);
}

FULMEN_INLINE TorchSession::Todo TorchSession::todo(std::int64_t step) const {
  const ProfilerSchedule& s = options_.schedule;
  step -= s.skip_first;
  const std::int64_t cycle = s.wait + s.warmup + s.active;
  if (step < 0 || (s.repeat > 0 && step / cycle >= s.repeat) || step % cycle < s.wait) return Todo::nothing;
  return step % cycle < s.wait + s.warmup ? Todo::warmup : Todo::record;
}

FULMEN_INLINE void TorchSession::apply(Todo todo) {
  if (todo == Todo::nothing) return;
  if (!std::exchange(prepared_, true)) torch::autograd::profiler::prepareProfiler(config_, activities_);
  if (todo == Todo::record && !recording_) enable();
}

FULMEN_INLINE void TorchSession::enable() {
  torch::autograd::profiler::enableProfiler(config_, activities_);
  recording_ = true;
  for (Range& range : ranges_) open(range);
}

/// The ranges that are open end with the recording, innermost first: what is nested stays so.
FULMEN_INLINE std::unique_ptr<torch::autograd::profiler::ProfilerResult> TorchSession::disable() {
  for (auto range = ranges_.rbegin(); range != ranges_.rend(); ++range) range->record.reset();
  prepared_ = recording_ = false;
  return torch::autograd::profiler::disableProfiler();
}

/// Ends what runs, and forgets it. Kineto that is prepared can only be stopped after it has been started.
FULMEN_INLINE void TorchSession::abandon() noexcept {
  if (!prepared_) return;
  try {
    if (!recording_) torch::autograd::profiler::enableProfiler(config_, activities_);
    disable();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fulmen: TorchProfiler: %s\n", error.what());
  }
}

FULMEN_INLINE void TorchSession::open(Range& range) {
  range.record = std::make_unique<at::RecordFunction>(at::RecordScope::USER_SCOPE);
  if (range.record->isActive()) range.record->before(std::string_view(range.action->name()));
}

FULMEN_INLINE void TorchSession::start(const Action& action) {
  if (!begun_ && ctx_.phase() != Phase::idle && !ctx_.sanity_checking()) [[unlikely]] {
    begun_ = true;
    apply(todo(0));
  }
  ranges_.push_back({&action, nullptr});
  if (recording_) open(ranges_.back());
}

FULMEN_INLINE void TorchSession::stop(const Action& action) {
  for (auto range = ranges_.end(); range != ranges_.begin();) {
    if ((--range)->action == &action) {
      ranges_.erase(range);
      return;
    }
  }
}

FULMEN_INLINE void TorchSession::step() {
  if (ctx_.sanity_checking()) return;
  if (recording_) ++recorded_;
  // A cycle ends where the next begins, or nothing follows; with wait and warmup 0 the next step is recorded
  // as well.
  const ProfilerSchedule& s = options_.schedule;
  const bool cycle_ends = (step_ + 1 - s.skip_first) % (s.wait + s.warmup + s.active) == 0;
  ++step_;
  if (recording_ && cycle_ends) keep();
  apply(todo(step_));
}

FULMEN_INLINE void TorchSession::keep() {
  const auto result = disable();
  add(result->events());
  if (!folder_.empty()) save(*result);
}

FULMEN_INLINE void TorchSession::save(torch::autograd::profiler::ProfilerResult& result) {
  const std::string name =
      profile_name(ctx_, options_.filename) + '.' + std::to_string(options_.traces_++) + ".pt.trace.json";
  const std::filesystem::path path = folder_ / name, aside = folder_ / ('.' + name + ".tmp");
  // Kineto says nothing where it cannot write; and a trace of the last run stays until this one is whole.
  std::FILE* file = std::fopen(aside.c_str(), "wb");
  if (file == nullptr) fail_to_write(path);
  std::fclose(file);
  result.save(aside.string());
  std::error_code error;
  if (std::filesystem::file_size(aside, error) == 0)
    errno = EIO;
  else
    std::filesystem::rename(aside, path, error);
  if (error) errno = error.value();
  if (!std::filesystem::exists(path)) fail_to_write(path);
}

FULMEN_INLINE void TorchSession::add(const std::vector<torch::autograd::profiler::KinetoEvent>& events) {
  struct Event {
    const torch::autograd::profiler::KinetoEvent* event;
    std::string name;
    std::uint64_t begin, end, children = 0, self_device = 0, device = 0;
    std::size_t parent;
  };
  constexpr std::size_t none = ~std::size_t{0};
  std::vector<Event> cpu;
  for (const auto& event : events) {
    if (event.deviceType() != c10::DeviceType::CPU || event.isAsync() || event.isHiddenEvent()) continue;
    std::string name = event.name();
    if (name == "[memory]") continue;
    cpu.push_back({&event, std::move(name), event.startNs(), event.endNs(), 0, 0, 0, none});
  }
  // Those of a thread after one another, each before what is inside it.
  std::stable_sort(cpu.begin(), cpu.end(), [](const Event& a, const Event& b) {
    const std::uint64_t thread_a = a.event->startThreadId(), thread_b = b.event->startThreadId();
    if (thread_a != thread_b) return thread_a < thread_b;
    return a.begin != b.begin ? a.begin < b.begin : a.end > b.end;
  });
  std::unordered_map<std::uint64_t, std::size_t> by_correlation;
  std::vector<std::size_t> around;
  for (std::size_t i = 0; i < cpu.size(); ++i) {
    const auto holds = [&](const Event& outer) {
      return outer.event->startThreadId() == cpu[i].event->startThreadId() && outer.end >= cpu[i].end;
    };
    while (!around.empty() && !holds(cpu[around.back()])) around.pop_back();
    if (!around.empty()) {
      cpu[i].parent = around.back();
      cpu[around.back()].children += cpu[i].end - cpu[i].begin;
    }
    around.push_back(i);
    by_correlation.emplace(cpu[i].event->correlationId(), i);
  }
  // What runs on a device belongs to the operator that launched it. (An annotation's copy there has its
  // name.)
  for (const auto& event : events) {
    if (event.deviceType() == c10::DeviceType::CPU) continue;
    const auto found = by_correlation.find(event.linkedCorrelationId());
    if (found == by_correlation.end() || cpu[found->second].name == event.name()) continue;
    cpu[found->second].self_device += event.durationNs();
  }
  for (std::size_t i = cpu.size(); i-- > 0;) {
    cpu[i].device += cpu[i].self_device;
    if (cpu[i].parent != none) cpu[cpu[i].parent].device += cpu[i].device;
  }
  std::unordered_map<std::string_view, std::size_t> places;
  for (std::size_t i = 0; i < operators_.size(); ++i) places.emplace(operators_[i].name, i);
  operators_.reserve(operators_.size() +
                     cpu.size());  // so that the keys, which are views of names in it, stay where they are
  for (const Event& event : cpu) {
    auto place = places.find(event.name);
    if (place == places.end()) {
      operators_.push_back({.name = event.name});
      place = places.emplace(operators_.back().name, operators_.size() - 1).first;
    }
    OperatorTime& sum = operators_[place->second];
    const std::uint64_t time = event.end - event.begin;
    sum.cpu += time;
    sum.self_cpu += time - std::min(time, event.children);
    sum.device += event.device;
    sum.self_device += event.self_device;
    sum.flops += event.event->flops();
    ++sum.count;
  }
}

FULMEN_INLINE terminal::Table TorchSession::table() const {
  std::vector<const OperatorTime*> sorted;
  std::uint64_t cpu = 0, device = 0;
  for (const OperatorTime& o : operators_) {
    sorted.push_back(&o);
    cpu += o.self_cpu;
    device += o.self_device;
  }
  const auto key = [&](const OperatorTime& o) -> std::uint64_t {
    switch (options_.sort_by_key) {
      case OperatorSort::self_cpu_time_total:
        return o.self_cpu;
      case OperatorSort::cpu_time_total:
        return o.cpu;
      case OperatorSort::self_device_time_total:
        return o.self_device;
      case OperatorSort::device_time_total:
        return o.device;
      case OperatorSort::count:
        break;
    }
    return static_cast<std::uint64_t>(o.count);
  };
  std::stable_sort(sorted.begin(), sorted.end(), [&](auto* a, auto* b) { return key(*a) > key(*b); });
  if (options_.row_limit >= 0)
    sorted.resize(std::min(sorted.size(), static_cast<std::size_t>(options_.row_limit)));

  const auto time = [](double ns) {
    if (ns >= 1e9) return detail::format("{:.3f}s", ns / 1e9);
    return ns >= 1e6 ? detail::format("{:.3f}ms", ns / 1e6) : detail::format("{:.3f}us", ns / 1e3);
  };
  const auto percent = [](std::uint64_t part, std::uint64_t all) {
    return detail::format("{:.2f}%",
                          all == 0 ? 0.0 : 100 * static_cast<double>(part) / static_cast<double>(all));
  };
  using terminal::Align;
  std::vector<terminal::Column> columns{{"Name"}};
  const auto right = [&](const char* header) { columns.push_back({header, Align::right}); };
  for (const char* header : {"Self CPU %", "Self CPU", "CPU total", "CPU time avg"}) right(header);
  if (device > 0) {
    for (const char* header : {"Self device %", "Self device", "Device total"}) right(header);
  }
  right("# of Calls");
  if (options_.with_flops) right("Total FLOPs");
  terminal::Table table(std::move(columns));
  table.title(report_title(ctx_.stage()));
  for (const OperatorTime* o : sorted) {
    const auto total = static_cast<double>(o->cpu);
    std::vector<std::string> row{o->name, percent(o->self_cpu, cpu), time(static_cast<double>(o->self_cpu)),
                                 time(total), time(total / static_cast<double>(o->count))};
    if (device > 0) {
      row.push_back(percent(o->self_device, device));
      row.push_back(time(static_cast<double>(o->self_device)));
      row.push_back(time(static_cast<double>(o->device)));
    }
    row.push_back(std::to_string(o->count));
    if (options_.with_flops) row.push_back(o->flops == 0 ? "--" : std::to_string(o->flops));
    table.add_row(std::move(row));
  }
  if (recorded_ == 0) {
    table.footer("No whole step was recorded: there were " + std::to_string(step_) +
                 ", see TorchProfiler::schedule");
  } else {
    table.footer("Steps recorded: " + std::to_string(recorded_) + " of " + std::to_string(step_));
  }
  table.footer("Self CPU time total: " + time(static_cast<double>(cpu)));
  if (device > 0) table.footer("Self device time total: " + time(static_cast<double>(device)));
  return table;
}

FULMEN_INLINE void TorchSession::finish() {
  if (recording_)
    keep();
  else
    abandon();
  write_report(table(), report_);
}

}  // namespace detail

FULMEN_INLINE void TorchProfiler::setup(Context& ctx) {
  session_ = std::make_shared<detail::TorchSession>(*this, ctx);
}

FULMEN_INLINE void TorchProfiler::start(const Action& action) {
  if (session_) session_->start(action);
}

FULMEN_INLINE void TorchProfiler::stop(const Action& action) {
  if (session_) session_->stop(action);
}

FULMEN_INLINE void TorchProfiler::step(Context&) {
  if (session_) session_->step();
}

FULMEN_INLINE void TorchProfiler::teardown(Context&) {
  if (const auto session = std::exchange(session_, nullptr)) session->finish();
}

#endif

}  // namespace fulmen
